"""MobileNetV2 for images of 32 pixels."""

from typing import ClassVar

from mmpretrain.models import MobileNetV2
from mmpretrain.registry import MODELS


@MODELS.register_module()
class CIFARMobileNetV2(MobileNetV2):
    """MMPretrain's MobileNetV2 whose second stage keeps its size, as in the public CIFAR benchmarks.

    Images of 32 pixels end as maps of 2 by 2, where the original would leave a single pixel. All arguments are
    the original's; those benchmarks use ``widen_factor=0.5``. Channel counts are rounded to multiples of 8 as
    MMPretrain does, so that parameter counts differ a little from theirs.
    """

    arch_settings: ClassVar[list[list[int]]] = [
        [expansion, channels, blocks, 1 if stage == 1 else stride]
        for stage, (expansion, channels, blocks, stride) in enumerate(MobileNetV2.arch_settings)
    ]
