"""Feature Normalized Knowledge Distillation for MMPretrain.

``import fnkd_plugin`` registers the losses, :class:`DistillHead`, :class:`Distiller`, the teachers, the
students, the backbones, the data sets and the hooks with MMPretrain's registries, and makes the framework read
checkpoints as data (see :mod:`fnkd_plugin.mm.checkpoints`). :mod:`fnkd_plugin.functional` needs torch alone,
:mod:`fnkd_plugin.losses` and :mod:`fnkd_plugin.timm` torch and timm.
"""

from typing import TYPE_CHECKING

from fnkd_plugin._stack import OPENMMLAB_INSTALLED, refuse_imports, refuse_names

__version__ = '0.1.0'

if TYPE_CHECKING or OPENMMLAB_INSTALLED:
    from fnkd_plugin import losses, presets, taxonomy, teachers
    from fnkd_plugin.cache.cached_teacher import CachedTeacher
    from fnkd_plugin.mm import checkpoints, datasets, hooks, models, zoo
    from fnkd_plugin.mm.distill_head import DistillHead
    from fnkd_plugin.mm.distiller import Distiller
    from fnkd_plugin.mm.mix import distill
    from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
    from fnkd_plugin.prediction import Prediction

    checkpoints.guard_framework_loaders()
    zoo.extend_hub()

    __all__ = [
        'CachedTeacher',
        'DistillHead',
        'Distiller',
        'MMPretrainTeacher',
        'Prediction',
        'datasets',
        'distill',
        'hooks',
        'losses',
        'models',
        'presets',
        'taxonomy',
        'teachers',
    ]
else:
    refuse_imports()
    __getattr__ = refuse_names(__name__)
