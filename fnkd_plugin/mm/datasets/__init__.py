"""Data sets, label noise, and a file backend for images in a tar archive."""

from fnkd_plugin.mm.datasets.cub2010 import CUB2010
from fnkd_plugin.mm.datasets.digits import Digits
from fnkd_plugin.mm.datasets.flipped_labels import FlippedLabels
from fnkd_plugin.mm.datasets.tar_backend import TarBackend

__all__ = ['CUB2010', 'Digits', 'FlippedLabels', 'TarBackend']
