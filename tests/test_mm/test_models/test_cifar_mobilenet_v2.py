"""MobileNetV2 for 32 pixels: MMPretrain's own, with one stride less."""

import pytest
import torch
from mmpretrain.models import MobileNetV2

from fnkd_plugin.mm.models import CIFARMobileNetV2

pytestmark = pytest.mark.upstream


def test_a_map_of_2_by_2_is_left_of_32_pixels() -> None:
    images = torch.randn(2, 3, 32, 32)
    assert CIFARMobileNetV2(widen_factor=0.5)(images)[0].shape == (2, 1280, 2, 2)
    assert MobileNetV2(widen_factor=0.5)(images)[0].shape == (2, 1280, 1, 1)


def test_weights_of_the_original_fit_and_it_stays_what_it_is() -> None:
    original, ours = MobileNetV2(widen_factor=0.25), CIFARMobileNetV2(widen_factor=0.25)
    ours.load_state_dict(original.state_dict())
    strides = [m.stride for m in ours.modules() if isinstance(m, torch.nn.Conv2d) and m.stride != (1, 1)]
    assert len(strides) == 4
    assert [s for *_, s in MobileNetV2.arch_settings] == [1, 2, 2, 2, 1, 2, 1]
