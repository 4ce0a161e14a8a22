"""MobileNetV2 for images of 32x32 pixels."""

from typing import ClassVar

from mmpretrain.models import MobileNetV2
from mmpretrain.registry import MODELS


@MODELS.register_module()
class CIFARMobileNetV2(MobileNetV2):
    """MMPretrain's MobileNetV2 with stride 1 in the second stage, as in the public CIFAR benchmarks.

    The last feature maps of 32x32 images are 2x2 instead of 1x1. All arguments are MMPretrain's; the benchmarks use
    ``widen_factor=0.5``. MMPretrain rounds channel counts to multiples of 8, so parameter counts differ slightly from
    those of the benchmarks.
    """

    arch_settings: ClassVar[list[list[int]]] = [
        [expansion, channels, blocks, 1 if stage == 1 else stride]
        for stage, (expansion, channels, blocks, stride) in enumerate(MobileNetV2.arch_settings)
    ]
