"""Resizing of images to a teacher's input size."""

import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin.errors import SetupError
from fnkd_plugin.readers import ImageSize

# torch has no Lanczos and Hamming filters; bicubic is the closest (tested).
_MODES = {
    'nearest': dict(mode='nearest-exact'),
    'bilinear': dict(mode='bilinear', antialias=True),
    'bicubic': dict(mode='bicubic', antialias=True),
    'lanczos': dict(mode='bicubic', antialias=True),
    'hamming': dict(mode='bicubic', antialias=True),
    'box': dict(mode='area'),
    'area': dict(mode='area'),
}


class Resize:
    """Resizes images [N, C, H, W]; images that already have the size are returned unchanged.

    Bilinear and bicubic are antialiased, as in Pillow but not in OpenCV (our choice, since the student's batch has been
    resized before).

    Args:
        owner: The teacher's name, for errors.
        size: H = W, or (H, W), in pixels; None does not resize.
        interpolation: A name of Pillow's: ``'nearest'``, ``'bilinear'``, ``'bicubic'``, ``'lanczos'``, ``'hamming'``,
            ``'box'``; or ``'area'``, OpenCV's name of ``'box'``.

    Attributes:
        size: (H, W) or None.

    Raises:
        SetupError: If the size is not one or two integers > 0, or the interpolation is unknown.
    """

    def __init__(self, owner: str, size: ImageSize | None, interpolation: str) -> None:
        if interpolation not in _MODES:
            raise SetupError(f'{owner}: interpolation must be one of {", ".join(_MODES)}, but is {interpolation!r}.')
        sides = size if isinstance(size, (tuple, list)) else (size, size)
        if size is not None and (len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides)):
            raise SetupError(f'{owner}: input_size must be a number of pixels or (height, width), but is {size!r}.')
        self.size: tuple[int, int] | None = None if size is None else tuple(sides)  # type: ignore[assignment]
        self.interpolation = interpolation

    def __call__(self, images: Tensor) -> Tensor:
        """Resize images [N, C, H, W]."""
        if self.size is None or images.shape[-2:] == self.size:
            return images
        return F.interpolate(images, self.size, **_MODES[self.interpolation])  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.size is None:
            return "the student's size"
        height, width = self.size
        return f'{height if height == width else f"{height} x {width}"} px {self.interpolation}'
