"""Feature Normalized Knowledge Distillation for MMPretrain and timm.

``import fnkd_plugin`` registers the losses, :class:`DistillHead`, :class:`Distiller`, the teachers, the students, the
backbones, the data sets and the hooks with MMPretrain's registries, and makes the framework read checkpoints as data
(see :mod:`fnkd_plugin.mm.checkpoints`). Without an OpenMMLab stack, :mod:`fnkd_plugin.functional`,
:mod:`fnkd_plugin.losses`, :mod:`fnkd_plugin.taxonomy`, :mod:`fnkd_plugin.teachers` and :mod:`fnkd_plugin.timm` work.
"""

import contextlib
import functools
import importlib
import io
import sys
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fnkd_plugin.cache.cached_teacher import CachedTeacher
    from fnkd_plugin.mm.distill_config import distill
    from fnkd_plugin.mm.distill_head import DistillHead
    from fnkd_plugin.mm.distiller import Distiller
    from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
    from fnkd_plugin.prediction import Prediction

__version__ = '0.2.0'
__all__ = ['CachedTeacher', 'DistillHead', 'Distiller', 'MMPretrainTeacher', 'Prediction', 'distill']
_MODULES = dict(
    CachedTeacher='cache.cached_teacher',
    DistillHead='mm.distill_head',
    Distiller='mm.distiller',
    MMPretrainTeacher='mm.mmpretrain_teacher',
    Prediction='prediction',
    distill='mm.distill_config',
)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if name != 'Prediction':
        importlib.import_module(f'{__name__}.mm')  # without OpenMMLab it says what to install
    return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)


@functools.cache
def register() -> None:
    """Register everything with MMPretrain, if it is installed; ``import fnkd_plugin`` calls it."""
    if not all(find_spec(name) for name in ('mmengine', 'mmcv', 'mmpretrain')):
        return
    # OpenMMLab prints what it could not import, which nothing here needs.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from fnkd_plugin.cache import cached_teacher  # noqa: F401
        from fnkd_plugin.mm import (  # noqa: F401
            checkpoints,
            datasets,
            distill_config,
            distiller,
            mmpretrain_teacher,
            models,
            registry,
            zoo,
        )
        from fnkd_plugin.mm.hooks import distillation_hook

    checkpoints.guard_framework_loaders()
    distillation_hook.add_to_runners()
    zoo.extend_hub()


# ``python -m fnkd_plugin --help`` answers at once; the module of a command registers.
if not (sys.argv[:1] == ['-m'] and __name__ in sys.orig_argv):
    register()
