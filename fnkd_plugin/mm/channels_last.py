"""Channels-last memory order: which weights have it, and convolutions whose training in it is unsafe."""

import torch
from torch import nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers.execution import is_channels_last


def has_channels_last_weights(model: nn.Module) -> bool:
    """Whether the weight of any convolution is in channels-last memory order."""
    return any(isinstance(module, nn.Conv2d) and is_channels_last(module.weight) for module in model.modules())


def unsafe_convolution(model: nn.Module) -> str | None:
    """A description of the first strided 1x1 convolution with fewer than 8 input channels, or None.

    In channels-last order its gradient overwrites memory on CPUs without AVX-512 (oneDNN 3.13, in PyTorch 2.15).
    """
    for name, module in model.named_modules():
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if pointwise and max(module.stride) > 1 and module.in_channels < 8:
            return f'{name}, a strided 1x1 convolution of {module.in_channels} input channels'
    return None


def check_trainable_on(device: torch.device, owner: str, unsafe: str | None, fix: str) -> None:
    """Refuse to train a model with an :func:`unsafe_convolution` on a CPU; on other devices it is safe.

    Raises:
        SetupError: Beginning with ``owner`` and ending with ``fix``.
    """
    if unsafe is not None and device.type == 'cpu':
        raise SetupError(f'{owner}: {unsafe}, may overwrite memory on CPUs in channels-last order; {fix}.')
