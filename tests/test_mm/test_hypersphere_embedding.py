"""The HE config: the backbone of the plain student, from the same weights, under a head of cosines."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from fnkd_plugin.mm.config import plain_model
from tests.helpers import build

FOLDER = Path(__file__).resolve().parents[2] / 'configs' / 'cub2010'


@pytest.mark.skipif('FNKD_WEIGHTS' not in os.environ, reason='FNKD_WEIGHTS names no folder of ImageNet weights')
def test_loaded_weights_survive_and_the_feature_is_the_plain_students() -> None:
    """``build`` calls ``init_weights``, as training does."""
    he, plain = (
        build(plain_model(Config.fromfile(FOLDER / f'{name}_lite0_cub2010.py'))).eval() for name in ('he', 'plain')
    )
    images = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        feature = plain.model.forward_head(plain.model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(he.extract_feat(images)[-1], feature, rtol=1e-4, atol=1e-4)
    assert he.head(he.extract_feat(images)).abs().max() <= he.head.scale == 16
