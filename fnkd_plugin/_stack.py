"""Whether an OpenMMLab stack is installed, and what to say when none is."""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import Any, NoReturn

OPENMMLAB_INSTALLED = all(find_spec(name) is not None for name in ('mmengine', 'mmcv', 'mmpretrain'))

_TORCH_ALONE = ('functional', 'scaled_cross_entropy')


def refuse() -> NoReturn:
    """Name the extras that bring what is missing."""
    raise ImportError(
        'fnkd_plugin needs MMPretrain, MMEngine and MMCV for everything but fnkd_plugin.functional: install one stack '
        "with pip install 'fnkd_plugin[onedl]' (maintained) or 'fnkd_plugin[openmmlab]' (upstream), never both in "
        'one environment.'
    )


class _Refusal(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        package, _, rest = fullname.partition('.')
        if package == 'fnkd_plugin' and rest.split('.')[0] not in _TORCH_ALONE:
            refuse()


def refuse_imports() -> None:
    """Make every import of a module that needs the stack say so."""
    sys.meta_path.insert(0, _Refusal())
