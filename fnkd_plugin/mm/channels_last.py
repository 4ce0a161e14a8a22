"""Convolutions that channels-last memory order is unsafe for."""

import torch
from torch import nn

from fnkd_plugin.errors import SetupError


def unsafe_convolution(model: nn.Module) -> str | None:
    """The first strided 1x1 convolution of fewer than 8 input channels, in words, or None.

    On a CPU without AVX-512 its gradient overwrites memory in this order (oneDNN 3.13, in PyTorch 2.15).
    """
    for name, module in model.named_modules():
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if pointwise and max(module.stride) > 1 and module.in_channels < 8:
            return f'{name}, a strided 1x1 convolution of {module.in_channels} input channels'
    return None


def check_trainable_on(device: torch.device, owner: str, unsafe: str | None, mend: str) -> None:
    """Refuse to train what :func:`unsafe_convolution` found on a CPU; elsewhere it is safe.

    Raises:
        SetupError: Beginning with ``owner`` and ending with ``mend``.
    """
    if unsafe is not None and device.type == 'cpu':
        raise SetupError(f'{owner}: {unsafe}, may overwrite memory on CPUs in channels-last order; {mend}.')
