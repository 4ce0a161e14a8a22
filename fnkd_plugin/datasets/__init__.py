"""Data sets, and a file backend for images that stand in a tar archive."""

from fnkd_plugin._stack import require_openmmlab

require_openmmlab()

from fnkd_plugin.datasets.cub2010 import CUB2010  # noqa: E402
from fnkd_plugin.datasets.digits import Digits  # noqa: E402
from fnkd_plugin.datasets.tar_backend import TarBackend  # noqa: E402

__all__ = ['CUB2010', 'Digits', 'TarBackend']
