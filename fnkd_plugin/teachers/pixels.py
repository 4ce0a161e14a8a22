"""The same pixels under another normalisation and channel order."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError

# A std of 255 maps to [0, 1]; twice that leaves room for other ranges (our choice). Of 12 bit images it is > 900.
_LARGEST_STD = 510


@dataclass(frozen=True)
class PixelFormat:
    """How a batch of images [N, C, H, W] is normalised.

    Attributes:
        mean: Per channel, on the 0 to 255 scale and in the batch's own channel order; None if unknown.
        std: As ``mean``.
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
        """From any sequences."""
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
        """This format with what is given in place of its own entries; errors begin with ``owner``.

        Raises:
            SetupError: If what is given is not a format, or the result is not on the 0 to 255 scale.
        """
        try:
            pixels = PixelFormat.of(
                self.mean if mean is None else mean,
                self.std if std is None else std,
                channel_order or self.channel_order,
            )
        except SetupError as error:
            raise SetupError(f'{owner}: {error}') from error
        # Here, not for every format, so that a data preprocessor of such numbers can be restated.
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
    """The format of the images that an MMPretrain data preprocessor makes, as far as it is known from it alone.

    ``to_rgb=True`` gives RGB. ``to_rgb=False`` keeps whatever the data set loads: BGR from
    ``LoadImageFromFile``, RGB from CIFAR's loader; so it is unknown. Without ``mean`` the images may have
    been normalised in the pipeline or not at all; so that is unknown too.
    """
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    to_rgb = getattr(preprocessor, 'to_rgb', False)
    mean, std = (x.flatten().tolist() if isinstance(x, Tensor) else None for x in (mean, std))
    return PixelFormat.of(mean, std, 'rgb' if to_rgb else None)


def converter(source: PixelFormat, target: PixelFormat) -> Callable[[Tensor], Tensor]:
    """The function from the student's format to the teacher's: undo, reorder, redo, as one scale and shift.

    Equal formats pass through untouched, unknown entries counting as equal where both are unknown.

    Raises:
        SetupError: If the two cannot be related because something is unknown, or channel counts differ.
    """
    if source == target:
        return _pass_through
    if source.mean is None or target.mean is None or source.std is None or target.std is None:
        if (source.mean, source.std) != (target.mean, target.std):
            raise SetupError(f'the {_unknown_side(source.mean)} mean and std are unknown')
    elif len(source.mean) != len(target.mean):
        raise SetupError(f'{len(source.mean)} channels are not {len(target.mean)}')
    flip = False
    if source.channel_order != target.channel_order and len(source.mean or (0, 0, 0)) == 3:
        if source.channel_order is None or target.channel_order is None:
            raise SetupError(f'the {_unknown_side(source.channel_order)} channel order is unknown')
        flip = True
    if source.mean is None or target.mean is None or source.std is None or target.std is None:
        return _Affine(None, None, flip)
    step = -1 if flip else 1
    mean, std = torch.tensor(source.mean[::step]), torch.tensor(source.std[::step])
    target_mean, target_std = torch.tensor(target.mean), torch.tensor(target.std)
    if torch.equal(mean, target_mean) and torch.equal(std, target_std):
        return _Affine(None, None, flip) if flip else _pass_through
    return _Affine(std / target_std, (mean - target_mean) / target_std, flip)


def _unknown_side(of_source: object) -> str:
    return "student's" if of_source is None else "teacher's"


def _pass_through(images: Tensor) -> Tensor:
    return images


class _Affine:
    def __init__(self, scale: Tensor | None, shift: Tensor | None, flip: bool) -> None:
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
