"""Images at a teacher's own size, by its own interpolation."""

import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin.errors import SetupError
from fnkd_plugin.readers import ImageSize

# What torch has for each; it lacks Lanczos and Hamming windows, to which bicubic is nearest (tested).
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
    """Images [N, C, H, W] of one size; images of that size pass through untouched.

    Bilinear and bicubic are antialiased as Pillow's are. OpenCV's are not; that is not imitated, since what is resized
    is the student's batch, which has been resized before (our choice).

    Args:
        owner: Whose images they are; begins the errors.
        size: H = W, or (H, W), in pixels; None leaves every size as it is.
        interpolation: As Pillow calls it: ``'nearest'``, ``'bilinear'``, ``'bicubic'``, ``'lanczos'``, ``'hamming'``,
            ``'box'``; OpenCV's ``'area'`` is ``'box'``.

    Attributes:
        size: (H, W) or None.

    Raises:
        SetupError: If the size is not of one or two whole numbers > 0, or the interpolation is unknown.
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
        """The images [N, C, H, W], resized if they differ."""
        if self.size is None or images.shape[-2:] == self.size:
            return images
        return F.interpolate(images, self.size, **_MODES[self.interpolation])  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.size is None:
            return "the student's size"
        height, width = self.size
        return f'{height if height == width else f"{height} x {width}"} px {self.interpolation}'
