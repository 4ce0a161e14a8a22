"""Normalisation and channel order of images, and their conversion."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError

# A std of 255 maps to [0, 1]; the limit allows for other ranges (our choice). That of 12 bit images is > 900.
_LARGEST_STD = 510


@dataclass(frozen=True)
class PixelFormat:
    """How a batch of images [N, C, H, W] is normalised.

    Attributes:
        mean: Per channel, on the 0 to 255 scale and in the channel order of the batch; None if unknown.
        std: Likewise.
        channel_order: ``'rgb'``, ``'bgr'``, or None if unknown.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: str | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise SetupError(f'mean and std must be given together and be of one length: {self}.')
        numbers = [*(self.mean or ()), *(self.std or ())]
        if not all(math.isfinite(number) for number in numbers) or min(self.std or (1,)) <= 0:
            raise SetupError(f'mean and std must be finite numbers, and std > 0: {self}.')
        if self.channel_order not in ('rgb', 'bgr', None):
            raise SetupError(f"channel_order must be 'rgb' or 'bgr', but is {self.channel_order!r}.")

    @classmethod
    def of(
        cls,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_order: str | None = None,
    ) -> 'PixelFormat':
        """Build from any sequences of numbers."""
        try:
            means, stds = (None if values is None else tuple(float(x) for x in values) for values in (mean, std))
        except (TypeError, ValueError) as error:
            raise SetupError(f'mean and std must be one number per channel, but are {mean!r} and {std!r}.') from error
        return cls(means, stds, channel_order)

    def restated(
        self,
        owner: str,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_order: str | None = None,
    ) -> 'PixelFormat':
        """This format with the given entries replaced; errors begin with ``owner``.

        Raises:
            SetupError: If the result is invalid or not on the 0 to 255 scale.
        """
        try:
            pixels = PixelFormat.of(
                self.mean if mean is None else mean,
                self.std if std is None else std,
                channel_order or self.channel_order,
            )
        except SetupError as error:
            raise SetupError(f'{owner}: {error}') from error
        # Not checked for every format, so that a data preprocessor with such numbers can be overridden.
        mean, std = pixels.mean or (), pixels.std or (1,)
        if max(std) < 1 or max(std) > _LARGEST_STD or any(not -1 <= m <= 256 for m in mean):
            raise SetupError(
                f'{owner}: mean and std must be on the 0 to 255 scale, not that of 0 to 1 or of 16 bit: {pixels}.'
            )
        return pixels

    def __str__(self) -> str:
        if self.mean is None or self.std is None:
            return f'mean and std unknown, {self.channel_order or "channel order unknown"}'
        numbers = [' '.join(f'{x:.5g}' for x in values) for values in (self.mean, self.std)]
        return f'mean {numbers[0]}, std {numbers[1]}, {self.channel_order or "channel order unknown"}'


def format_of_preprocessor(preprocessor: nn.Module) -> PixelFormat:
    """The output format of an MMPretrain data preprocessor, as far as it is known.

    ``to_rgb=True`` gives RGB. With ``to_rgb=False`` the channel order is unknown: it is that of the data set, BGR from
    ``LoadImageFromFile``, RGB for CIFAR. Without ``mean`` the normalisation is unknown, since the pipeline may
    normalise.
    """
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    to_rgb = getattr(preprocessor, 'to_rgb', False)
    mean, std = (x.flatten().tolist() if isinstance(x, Tensor) else None for x in (mean, std))
    return PixelFormat.of(mean, std, 'rgb' if to_rgb else None)


def converter(source: PixelFormat, target: PixelFormat) -> Callable[[Tensor], Tensor]:
    """The conversion of images from ``source`` to ``target``, as a channel flip, a scale and a shift.

    Images of equal formats are returned unchanged; an entry that is unknown in both counts as equal.

    Raises:
        SetupError: If an entry is unknown in one of the two, or the numbers of channels differ.
    """
    if source == target:
        return _Affine()
    numbers, wanted = (source.mean, source.std), (target.mean, target.std)
    if numbers != wanted and None in (*numbers, *wanted):
        raise SetupError(f'the {_unknown_side(source.mean)} mean and std are unknown')
    flip = False
    if source.channel_order != target.channel_order and len(source.mean or (0, 0, 0)) == 3:
        if source.channel_order is None or target.channel_order is None:
            raise SetupError(f'the {_unknown_side(source.channel_order)} channel order is unknown')
        flip = True
    if source.mean is None or target.mean is None or source.std is None or target.std is None:
        return _Affine(flip)
    if len(source.mean) != len(target.mean):
        raise SetupError(f"the student's images have {len(source.mean)} channels, the teacher's {len(target.mean)}")
    step = -1 if flip else 1
    mean, std = torch.tensor(source.mean[::step]), torch.tensor(source.std[::step])
    target_mean, target_std = torch.tensor(target.mean), torch.tensor(target.std)
    if torch.equal(mean, target_mean) and torch.equal(std, target_std):
        return _Affine(flip)
    return _Affine(flip, std / target_std, (mean - target_mean) / target_std)


def _unknown_side(of_source: object) -> str:
    return "student's" if of_source is None else "teacher's"


class _Affine:
    def __init__(self, flip: bool = False, scale: Tensor | None = None, shift: Tensor | None = None) -> None:
        self.scale = None if scale is None else scale.view(-1, 1, 1)
        self.shift = None if shift is None else shift.view(-1, 1, 1)
        self.flip = flip

    def __call__(self, images: Tensor) -> Tensor:
        if self.flip:
            images = images.flip(1)
        if self.scale is None or self.shift is None:
            return images
        if self.scale.device != images.device:
            self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        return torch.addcmul(self.shift.to(images), images, self.scale.to(images))
