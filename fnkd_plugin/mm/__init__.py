"""The OpenMMLab side: the distilled model, hooks, configs, checkpoints, data sets and the model zoo.

Raises:
    ImportError: If MMPretrain, MMEngine or MMCV is not installed.
"""

import logging
from importlib.util import find_spec

_missing = [name for name in ('mmengine', 'mmcv', 'mmpretrain') if find_spec(name) is None]
if _missing:
    raise ImportError(
        f'fnkd_plugin.mm needs MMPretrain, MMEngine and MMCV, but {", ".join(_missing)} cannot be found: install one '
        "stack with pip install 'fnkd_plugin[onedl]' (maintained) or 'fnkd_plugin[openmmlab]' (upstream), never both "
        'in one environment.'
    )

from mmengine.logging import print_log  # noqa: E402


class _ToMMEngine(logging.Handler):
    """Forwards records to MMEngine's current logger: the Runner's while one trains."""

    def emit(self, record: logging.LogRecord) -> None:
        print_log(record.getMessage(), logger='current', level=record.levelno)


_logger = logging.getLogger('fnkd_plugin')
_logger.addHandler(_ToMMEngine())
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.INFO)
