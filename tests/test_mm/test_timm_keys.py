"""timm's own keys: a converted model is timm's whole model, or it is refused."""

from collections.abc import Callable

import pytest
import timm
import torch

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.timm_keys import to_timm_keys
from tests.helpers import CLASSES, SIZE, assert_same_weights, build, resnet, timm_student

pytestmark = pytest.mark.upstream
IMAGES = torch.rand(2, 3, SIZE, SIZE)


def _on_timm_backbone(name: str, features: int) -> dict:
    """A TIMMBackbone with average pooling and a linear head."""
    return resnet(
        backbone=dict(type='TIMMBackbone', model_name=name),
        head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=features),
    )


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_a_timm_backbone_with_head_becomes_the_whole_model(name: str) -> None:
    features = timm.create_model(name).num_features
    ours = build(_on_timm_backbone(name, features)).eval()
    whole = timm.create_model(name, num_classes=CLASSES).eval()
    whole.load_state_dict(to_timm_keys(ours.state_dict(), 'x.pth', name), strict=True)
    torch.testing.assert_close(whole(IMAGES), ours(IMAGES))


def test_a_head_that_does_more_than_pool_is_refused() -> None:
    """ConvNeXt normalises between pooling and classifier, which a LinearClsHead does not."""
    features = timm.create_model('test_convnext').num_features
    ours = build(_on_timm_backbone('test_convnext', features))
    with pytest.raises(SetupError, match='without --timm'):
        to_timm_keys(ours.state_dict(), 'x.pth', 'test_convnext')


@pytest.mark.parametrize('nest', [lambda k: k, lambda k: f'model.{k}'], ids=['own', 'nested'])
def test_a_timm_classifier_keeps_its_weights(nest: Callable[[str], str]) -> None:
    """A nested stock TimmClassifier cannot cut its prefix; it is cut here."""
    own = build(timm_student()).state_dict()
    state = {nest(key): value for key, value in own.items()}
    for model in (None, 'test_resnet'):
        assert_same_weights(to_timm_keys(state, 'x.pth', model), own)


@pytest.mark.parametrize(
    ('model', 'name', 'message'),
    [
        (resnet(), None, 'timm has no key for backbone.conv1.weight'),
        (_on_timm_backbone('test_resnet', 384), None, '--timm-model NAME'),
        (_on_timm_backbone('test_resnet', 384), 'test_efficientnet', 'do not fit'),
        (timm_student(), 'test_efficientnet', 'not a test_efficientnet with a classifier'),
        (timm_student(), 'test_resnot', 'has no model'),
    ],
    ids=['not of timm', 'no name', 'another', 'no classifier', 'unknown'],
)
def test_what_is_not_timms_is_refused(model: dict, name: str | None, message: str) -> None:
    if model.get('backbone', {}).get('type') == 'TIMMBackbone':
        model['head']['in_channels'] = timm.create_model('test_resnet').num_features
    with pytest.raises(SetupError, match=message):
        to_timm_keys(build(model).state_dict(), 'x.pth', name)
