"""Channels-last memory order, in which convolutions are faster."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from fnkd_plugin.mm.channels_last import check_trainable_on, unsafe_convolution


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Converts the model's weights to channels-last memory order before training, validation or testing.

    A convolution with such a weight returns its output in this order for any input, so the whole network follows.
    Convolutions, depthwise ones above all, are then several times faster on CPUs and on tensor cores. Outputs change by
    rounding only. ``TimmStudent`` and the teachers have their own option for it.
    """

    def before_train(self, runner: Any) -> None:
        """Convert the weights.

        Raises:
            SetupError: If gradients may overwrite memory on CPUs, see
                :func:`~fnkd_plugin.mm.channels_last.unsafe_convolution`.
        """
        device = next(runner.model.parameters()).device
        unsafe = unsafe_convolution(runner.model)
        check_trainable_on(device, 'ChannelsLastHook', unsafe, 'train without the hook, or with 8 channels or more')
        self.before_val(runner)

    def before_val(self, runner: Any) -> None:
        """Convert in place; the optimiser keeps its parameters."""
        # Not in before_run: weights are initialised later, in memory order.
        runner.model.to(memory_format=torch.channels_last)

    before_test = before_val
