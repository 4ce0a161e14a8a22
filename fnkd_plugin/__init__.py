"""Feature Normalized Knowledge Distillation for MMPretrain and timm.

``import fnkd_plugin`` registers the losses, :class:`DistillHead`, :class:`Distiller`, the teachers, the students, the
backbones, the data sets and the hooks with MMPretrain's registries, and makes the framework read checkpoints as data
(see :mod:`fnkd_plugin.mm.checkpoints`). Without an OpenMMLab stack, :mod:`fnkd_plugin.functional`,
:mod:`fnkd_plugin.losses`, :mod:`fnkd_plugin.taxonomy`, :mod:`fnkd_plugin.teachers` and :mod:`fnkd_plugin.timm` work.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from fnkd_plugin.prediction import Prediction

__version__ = '0.2.0'
__all__ = ['CachedTeacher', 'DistillHead', 'Distiller', 'MMPretrainTeacher', 'Prediction', 'distill']

if TYPE_CHECKING or all(find_spec(name) for name in ('mmengine', 'mmcv', 'mmpretrain')):
    from fnkd_plugin.cache.cached_teacher import CachedTeacher
    from fnkd_plugin.mm import checkpoints, datasets, hooks, models, registry, zoo  # noqa: F401
    from fnkd_plugin.mm.distill_config import distill
    from fnkd_plugin.mm.distill_head import DistillHead
    from fnkd_plugin.mm.distiller import Distiller
    from fnkd_plugin.mm.hooks import distillation_hook
    from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher

    checkpoints.guard_framework_loaders()
    distillation_hook.add_to_runners()
    zoo.extend_hub()
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            import fnkd_plugin.mm  # noqa: F401  # raises ImportError, which says what to install
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
