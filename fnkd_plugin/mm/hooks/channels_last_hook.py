"""Weights in the memory order in which convolutions are fast."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from fnkd_plugin.mm.channels_last import check_trainable_on, unsafe_convolution


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Puts the model's weights in channels-last memory order before training, validation or testing.

    A convolution whose weight is in this order gives its output in it, whatever its input's, so that the whole
    network follows. Convolutions, above all depthwise ones, are then several times faster on CPUs and on tensor
    cores. Names and shapes stay; numbers differ by rounding. ``TimmStudent`` and the teachers have an option of
    their own.

    A strided 1x1 convolution of fewer than 8 input channels is refused on CPUs, see
    :func:`~fnkd_plugin.mm.channels_last.unsafe_convolution`.
    """

    def before_train(self, runner: Any) -> None:
        """Reorder, unless that is harmful.

        Raises:
            SetupError: If the model's gradients may overwrite memory.
        """
        device = next(runner.model.parameters()).device
        unsafe = unsafe_convolution(runner.model)
        check_trainable_on(device, 'ChannelsLastHook', unsafe, 'train without the hook, or with 8 channels or more')
        self.before_val(runner)

    def before_val(self, runner: Any) -> None:
        """Reorder in place; the parameters stay the objects that the optimiser holds."""
        # Not before_run: initial weights, which come after it, are drawn in memory order.
        runner.model.to(memory_format=torch.channels_last)

    before_test = before_val
