"""Whether an OpenMMLab stack is installed, what works without one, and what to say of the rest."""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import Any, NoReturn

OPENMMLAB_INSTALLED = all(find_spec(name) is not None for name in ('mmengine', 'mmcv', 'mmpretrain'))

# Modules and whole packages; the packages above them can be imported, too.
_WITHOUT_STACK = (
    'errors',
    'framework',
    'functional',
    'host_copy',
    'readers',
    'losses',
    'prediction',
    'rng',
    'scaled_cross_entropy',
    'taxonomy',
    'teachers.callable_teacher',
    'teachers.class_map',
    'teachers.class_names',
    'teachers.ensemble_teacher',
    'teachers.execution',
    'teachers.pixels',
    'teachers.resize',
    'teachers.teacher',
    'timm',
    'teachers.timm_models',
    'losses.top_k',
)


def refuse() -> NoReturn:
    """Name the extras that bring what is missing."""
    raise ImportError(
        'fnkd_plugin needs MMPretrain, MMEngine and MMCV for everything but fnkd_plugin.functional, .losses, .taxonomy '
        "and .timm: install one stack with pip install 'fnkd_plugin[onedl]' (maintained) or 'fnkd_plugin[openmmlab]' "
        '(upstream), never both in one environment.'
    )


def _works_without(module: str) -> bool:
    return any(f'{module}.'.startswith(f'{free}.') or free.startswith(f'{module}.') for free in _WITHOUT_STACK)


class _Refusal(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        package, _, module = fullname.partition('.')
        if package == 'fnkd_plugin' and not _works_without(module):
            refuse()


def refuse_imports() -> None:
    """Make every import of a module that needs the stack say so."""
    sys.meta_path.insert(0, _Refusal())


def refuse_names(package: str) -> Callable[[str], NoReturn]:
    """The ``__getattr__`` of a package that is smaller without the stack: what it lacks needs it."""

    def __getattr__(name: str) -> NoReturn:  # noqa: N807
        # Not found here, a module that works without is imported next.
        if name.startswith('__') or _works_without(f'{package}.{name}'.partition('.')[2]):
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        refuse()

    return __getattr__
