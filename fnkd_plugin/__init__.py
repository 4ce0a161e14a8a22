"""Feature Normalized Knowledge Distillation for MMPretrain.

``import fnkd_plugin`` registers the losses, :class:`DistillHead`, :class:`Distiller`, the teachers, the
students, the backbones, the data sets and the hooks with MMPretrain's registries, and makes the framework read
checkpoints as data (see :mod:`fnkd_plugin.checkpoints`). :mod:`fnkd_plugin.functional` needs torch alone,
:mod:`fnkd_plugin.losses` and :mod:`fnkd_plugin.timm` torch and timm.
"""

from typing import TYPE_CHECKING

from fnkd_plugin._stack import OPENMMLAB_INSTALLED, refuse_imports, refuse_names

__version__ = '0.1.0'

if TYPE_CHECKING or OPENMMLAB_INSTALLED:
    from fnkd_plugin import (
        backbones,
        checkpoints,
        datasets,
        distillers,
        engine,
        losses,
        presets,
        students,
        taxonomy,
        teachers,
        zoo,
    )
    from fnkd_plugin.distillers import Distiller, DistillHead, Prediction
    from fnkd_plugin.mixing import distill

    checkpoints.guard_framework_loaders()
    zoo.extend_hub()

    __all__ = [
        'DistillHead',
        'Distiller',
        'Prediction',
        'backbones',
        'checkpoints',
        'datasets',
        'distill',
        'distillers',
        'engine',
        'losses',
        'presets',
        'students',
        'taxonomy',
        'teachers',
        'zoo',
    ]
else:
    refuse_imports()
    __getattr__ = refuse_names(__name__)
