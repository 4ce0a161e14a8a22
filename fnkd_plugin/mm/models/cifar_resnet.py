"""ResNets for images of 32x32 pixels."""

from collections.abc import Callable

import torch.nn.functional as F
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError

_HE_INIT: list[dict] = [
    dict(type='Kaiming', layer=['Conv2d']),
    dict(type='Constant', val=1, layer=['_BatchNorm']),
]


def _conv(in_channels: int, channels: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """Two 3x3 convolutions, each followed by BN; the second ReLU follows the addition."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, channels, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels), nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if (in_channels, 1) != (channels, stride):
            self.shortcut = nn.Sequential(_conv(in_channels, channels, stride, size=1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class _PreactBlock(nn.Module):
    """Two 3x3 convolutions, each after BN and ReLU; the shortcut projects the raw input (the authors' code)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), _conv(in_channels, channels, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), _conv(channels, channels)
        same = (in_channels, 1) == (channels, stride)
        self.shortcut = None if same else _conv(in_channels, channels, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(F.relu(self.bn2(y))) + shortcut


@MODELS.register_module()
class CIFARResNet(BaseBackbone):
    """The ResNets of the CIFAR benchmarks: a 3x3 stem, then three stages of basic blocks.

    With the defaults the stages have 16, 32 and 64 channels (ResNet-20 and the like); ``stem_channels=32,
    base_channels=64`` gives the wide ones of the public distillation benchmarks (8x4, 32x4). A block that changes the
    shape has a 1x1 convolution as shortcut. Weights are initialised as by He et al.

    Args:
        depth: 6n + 2, with n blocks per stage: 8, 14, 20, 32, 56, 110, ...
        stem_channels: Channels of the stem, >= 1.
        base_channels: Channels of the first stage, >= 1; the later ones have twice and four times as many.
        preact: Whether BN and ReLU precede each convolution, with a last pair at the end, instead of following it.
        input_norm: Whether the first layer is a BN without affine parameters. ``preact=True, input_norm=True`` is the
            network of the FNKD authors' code.
        init_cfg: See MMEngine's ``BaseModule``.

    Raises:
        SetupError: If the depth is not 6n + 2, or a number of channels is not an integer >= 1.
    """

    def __init__(
        self,
        depth: int,
        stem_channels: int = 16,
        base_channels: int = 16,
        preact: bool = False,
        input_norm: bool = False,
        init_cfg: dict | list[dict] | None = _HE_INIT,
    ) -> None:
        super().__init__(init_cfg)
        _check_shape(depth, stem_channels, base_channels)
        block: Callable[[int, int, int], nn.Module] = _PreactBlock if preact else _Block
        norm_channels = 4 * base_channels if preact else stem_channels
        self.preact = preact
        self.input_bn = nn.BatchNorm2d(3, affine=False) if input_norm else nn.Identity()
        self.conv = _conv(3, stem_channels)
        self.bn = nn.BatchNorm2d(norm_channels)
        stages, in_channels = [], stem_channels
        for channels, stride in ((base_channels, 1), (2 * base_channels, 2), (4 * base_channels, 2)):
            blocks = [block(in_channels, channels, stride)]
            blocks += [block(channels, channels, 1) for _ in range((depth - 2) // 6 - 1)]
            stages.append(nn.Sequential(*blocks))
            in_channels = channels
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Images [N, 3, H, W] to the last feature map, [N, 4 * base_channels, ceil(H/4), ceil(W/4)], in a tuple."""
        x = self.input_bn(x)
        if self.preact:
            return (F.relu(self.bn(self.stages(self.conv(x)))),)
        return (self.stages(F.relu(self.bn(self.conv(x)))),)


def _check_shape(depth: int, stem_channels: int, base_channels: int) -> None:
    if not isinstance(depth, int):
        raise SetupError(f'CIFARResNet: depth must be a whole number 6n + 2, such as 20, but is {depth!r}.')
    if depth < 8 or (depth - 2) % 6:
        below = max(8, (depth - 2) // 6 * 6 + 2)
        raise SetupError(
            f'CIFARResNet: depth must be 6n + 2, n >= 1, but is {depth}; the nearest are {below} and {below + 6}.'
        )
    if not all(isinstance(channels, int) and channels >= 1 for channels in (stem_channels, base_channels)):
        raise SetupError(
            'CIFARResNet: stem_channels and base_channels must be whole numbers >= 1, but are '
            f'{stem_channels!r} and {base_channels!r}.'
        )
