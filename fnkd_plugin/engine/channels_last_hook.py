"""Weights in the memory order in which convolutions are fast."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch import nn

from fnkd_plugin.errors import SetupError


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Puts the model's weights in channels-last memory order before training, validation or testing.

    A convolution whose weight is in this order gives its output in it, whatever its input's, so that the whole
    network follows. Convolutions, above all depthwise ones, are then several times faster on CPUs and on tensor
    cores. Names and shapes stay; numbers differ by rounding. ``TimmStudent`` and the teachers have an option of
    their own.

    A strided 1x1 convolution of fewer than 8 input channels is refused on CPUs: without AVX-512 its gradient
    overwrites memory in this order (oneDNN 3.13, in PyTorch 2.15).
    """

    def before_train(self, runner: Any) -> None:
        """Reorder, unless that is harmful.

        Raises:
            SetupError: If the model's gradients may overwrite memory.
        """
        for name, module in runner.model.named_modules():
            if _overwrites_memory(module):
                raise SetupError(
                    f'ChannelsLastHook: {name}, a strided 1x1 convolution of {module.in_channels} input channels, may '
                    'overwrite memory on CPUs in this order; train without the hook, or with 8 channels or more.'
                )
        self.before_val(runner)

    def before_val(self, runner: Any) -> None:
        """Reorder in place; the parameters stay the objects that the optimiser holds."""
        # Not before_run: initial weights, which come after it, are drawn in memory order.
        runner.model.to(memory_format=torch.channels_last)

    before_test = before_val


def _overwrites_memory(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or module.weight.device.type != 'cpu':
        return False
    return module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 8
