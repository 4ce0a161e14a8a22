"""Weights in the memory order in which convolutions are fast."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Puts the model's weights in channels-last memory order before training, validation or testing.

    A convolution whose weight is in this order gives its output in it, whatever its input's, so that the whole
    network follows. Convolutions, above all depthwise ones, are then several times faster on CPUs and on tensor
    cores. Names and shapes stay; numbers differ by rounding. ``TimmStudent`` and the teachers have an option of
    their own.

    Not for networks with a strided 1x1 convolution of fewer than 8 input channels: on CPUs without AVX-512 its
    gradient overwrites memory in this order (oneDNN 3.13, in PyTorch 2.15).
    """

    def before_train(self, runner: Any) -> None:
        """Reorder in place; the parameters stay the objects that the optimiser holds."""
        # Not before_run: initial weights, which come after it, are drawn in memory order.
        runner.model.to(memory_format=torch.channels_last)

    before_val = before_test = before_train
