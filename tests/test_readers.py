"""Finding the last affine layer, and leaving the model as it was."""

import copy
import functools
import random

import numpy as np
import pytest
import timm
import torch
from mmpretrain.models import heads
from mmpretrain.models.heads.margin_head import NormProduct
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.readers import (
    AffineReader,
    LogitReader,
    ModuleCall,
    find_last_affine,
    find_last_module,
    image_size,
    only_size,
    probe,
    without_readers,
)
from tests.helpers import CLASSES, SIZE, TIMM_HEADS, build, cosine, resnet, timm_head, timm_student, vit

pytestmark = pytest.mark.upstream


def _find(model: nn.Module, size: int | None = SIZE) -> nn.Module | None:
    return find_last_affine(*probe(model, functools.partial(model, mode='tensor'), size))


def _arch(backbone: dict, head: dict, neck: dict | None = None) -> dict:
    return dict(type='ImageClassifier', backbone=backbone, neck=neck, head=dict(num_classes=CLASSES, **head))


_GAP = dict(type='GlobalAveragePooling')
STUDENTS = {
    'linear': (resnet(), 'head.fc'),
    'vision transformer': (vit(), 'head.layers.head'),
    'stacked': (
        _arch(resnet()['backbone'], dict(type='StackedLinearClsHead', in_channels=32, mid_channels=[16]), _GAP),
        'head.layers.1.fc',
    ),
    'classifier in the backbone': (
        dict(type='ImageClassifier', backbone=dict(type='LeNet5', num_classes=CLASSES), head=dict(type='ClsHead')),
        'backbone.classifier.2',
    ),
    'timm': (timm_student('test_resnet'), 'model.fc'),
    'timm vision transformer': (timm_student('test_vit', img_size=SIZE), 'model.head'),
}


@pytest.mark.parametrize('name', STUDENTS)
def test_the_layer_is_found_by_its_output(name: str) -> None:
    config, where = STUDENTS[name]
    model = build(config)
    layer = _find(model, None)
    assert layer is model.get_submodule(where)


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_efficientnet', 'test_vit', 'test_mambaout'])
def test_of_timm_models(name: str) -> None:
    model = timm.create_model(name, num_classes=CLASSES)
    layer = find_last_affine(*probe(model, model))
    assert layer is model.get_classifier()


@pytest.mark.parametrize('kind', TIMM_HEADS)
def test_of_each_kind_of_timm_head(kind: str) -> None:
    """What makes the logits decides, not the model's name."""
    model, where = timm_head(kind)
    layer = find_last_affine(*probe(model, model))
    assert layer is (None if where is None else model.get_submodule(where))


def test_of_a_timm_head_of_two_layers() -> None:
    model = timm.models.MetaFormer(num_classes=CLASSES, depths=(1,) * 4, dims=(8,) * 4)
    assert find_last_affine(*probe(model, model)) is model.head.fc.fc2


def test_a_1x1_convolution_counts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, CLASSES, 1), nn.Flatten())
    layer = find_last_affine(*probe(model, model))
    assert layer is model[2]
    reader = AffineReader(layer)
    images = torch.randn(2, 3, 8, 8)
    with reader:
        out = model(images)
    read = reader.take()
    assert read is not None and torch.equal(read.logits, out)
    torch.testing.assert_close(read.feature_norm, model[:2](images).flatten(1).norm(dim=1))


class _Wrong(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = images.mean((2, 3))
        a, b = self.a(x), self.b(x)
        return {
            'mean of two': (a + b) / 2,
            'scaled': 3 * a,
            'scaled in place': a.mul_(3) if self.how == 'scaled in place' else a,
            'softmax': a.softmax(1),
            'a copy': a.clone(),
            'two': (a, b),
            'part of one': a[:, :2],
        }[self.how]


@pytest.mark.parametrize('how', ['mean of two', 'scaled', 'scaled in place', 'softmax', 'a copy', 'two', 'part of one'])
def test_other_outputs_have_none(how: str) -> None:
    model = _Wrong(how)
    assert find_last_affine(*probe(model, model)) is None


def test_two_heads_of_mmpretrain_have_none() -> None:
    arch = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
    deit = vit(
        backbone=dict(type='DistilledVisionTransformer', arch=arch, img_size=SIZE, patch_size=8),
        head=dict(type='DeiTClsHead', num_classes=CLASSES, in_channels=16),
    )
    assert _find(build(deit)) is None
    assert isinstance(build(deit).head, heads.DeiTClsHead)


class _OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ('layer', 'affine'),
    [
        (_OwnForward(3, CLASSES), True),
        (NormProduct(3, CLASSES), False),
        (NormProduct(3, CLASSES, feature_norm=False), False),
        (NormProduct(3, CLASSES, feature_norm=False, weight_norm=False), True),
        (NormProduct(3, CLASSES, k=2, feature_norm=False, weight_norm=False), False),
    ],
)
def test_a_linear_layers_subclass_is_judged_by_what_it_computes(layer: nn.Linear, affine: bool) -> None:
    """On a blank image, whose features may all be zero, a cosine looks affine."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)
    output, ran = probe(model, model)
    assert torch.equal(output, torch.zeros(1, CLASSES)) or layer.bias is not None
    assert find_last_affine(output, ran) is (layer if affine else None)
    assert find_last_module(output, ran) is layer


def test_the_last_module_is_what_the_loss_calls() -> None:
    model = build(cosine())
    output, ran = probe(model, functools.partial(model, mode='tensor'), SIZE)
    assert find_last_affine(output, ran) is None and find_last_module(output, ran) is model.head
    assert ran[model.head].positional == 1
    assert find_last_module((output, output), ran) is None
    alone = _Wrong('mean of two')
    assert find_last_module(*probe(alone, alone)) is None, 'no module inside the model makes its output'


class _Gathers(nn.Module):
    """As LeViT and TinyViT: eval() gathers what forward needs, train() drops it and freezes a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.fc = nn.Linear(3, 3), nn.Linear(3, 4)
        self.bn = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> '_Gathers':
        super().train(mode)
        self.bn.eval()
        if mode:
            self.__dict__.pop('gathered', None)
            self.frozen.requires_grad_(False)
        else:
            self.gathered = torch.ones(1)
        return self

    def forward(self, images: Tensor) -> Tensor:
        scale = 1.0 if self.training else self.gathered
        return self.fc(self.frozen(self.dropout(self.bn(images).mean((2, 3)) * scale)))


def test_a_first_convolution_that_does_not_see_the_image() -> None:
    """As in TResNet (pixels become channels) and CSATv2 (frequencies do)."""
    unfolded = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(unfolded, nn.Linear(8, CLASSES))
    assert find_last_affine(*probe(model, model, SIZE)) is model[1]
    with pytest.raises(SetupError, match=r'images of 2 pixels'):
        probe(model, model, 2)


def test_models_whose_eval_does_more_than_set_flags() -> None:
    model = _Gathers()
    assert find_last_affine(*probe(model, model)) is model.fc
    assert not hasattr(model, 'gathered') and model.training


@pytest.mark.parametrize('training', [True, False])
def test_probing_leaves_the_model_and_the_streams_alone(training: bool) -> None:
    model = _Gathers()
    model.training = training
    model.bn.train(training)
    model.frozen.eval()
    modes = [module.training for module in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    streams = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    probe(model, model)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()) == streams
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_a_model_that_fails_at_every_size_raises() -> None:
    def forward(images: Tensor) -> Tensor:
        raise ValueError(f'no {images.shape[-1]}')

    with pytest.raises(SetupError, match=r'Linear: .* 224, 32, 299, 384 pixels \(ValueError: no 224\)'):
        probe(nn.Linear(3, 4), forward)


def test_grey_images_are_tried_where_the_first_convolution_takes_them() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert find_last_affine(*probe(model, model)) is model[3]


# AffineReader


@pytest.mark.parametrize('bias', [True, False])
def test_the_reader_reads_input_norm_logits_and_live_bias(bias: bool) -> None:
    layer = nn.Linear(6, 4, bias=bias)
    reader = AffineReader(layer)
    x = torch.randn(3, 6, requires_grad=True)
    layer(x)
    assert reader.take() is None, 'reads inside its context only'
    with reader:
        z = layer(x)
    assert not layer._forward_hooks
    read = reader.take()
    assert read is not None and reader.take() is None
    assert torch.equal(read.logits, z) and read.origin is layer.bias
    torch.testing.assert_close(read.feature_norm, x.norm(dim=1))
    read.feature_norm.sum().backward()
    torch.testing.assert_close(x.grad, x.detach() / x.detach().norm(dim=1, keepdim=True))


def test_the_norm_is_of_the_input_after_dropout_and_in_fp32() -> None:
    layer = nn.Linear(600, 4).bfloat16()
    reader = AffineReader(layer)
    x = nn.functional.dropout(torch.randn(3, 600), 0.5).bfloat16()
    with reader:
        layer(x)
    read = reader.take()
    assert read is not None and read.feature_norm.dtype == torch.float32
    torch.testing.assert_close(read.feature_norm, x.float().norm(dim=1))


def test_a_zero_feature_has_a_finite_gradient() -> None:
    layer = nn.Linear(6, 4)
    reader = AffineReader(layer)
    x = torch.zeros(2, 6, requires_grad=True)
    with reader:
        layer(x)
    reader.take().feature_norm.sum().backward()  # type: ignore[union-attr]
    assert torch.equal(x.grad, torch.zeros(2, 6))


def test_an_attached_reader_stays_until_a_copy_is_made_without_it() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    reader = AffineReader(model[0]).attach()
    assert reader.attach() is reader and len(model[0]._forward_hooks) == 1
    with reader:
        model(torch.ones(2, 6))
    assert reader.take() is not None
    plain = without_readers(model)
    assert not plain[0]._forward_hooks and not plain[0]._forward_hooks_with_kwargs and model[0]._forward_hooks
    torch.jit.script(plain)


def test_images_that_are_not_square() -> None:
    options = dict(img_size=(32, 16), embed_dim=16, depth=1, num_heads=2, num_classes=CLASSES)
    model = timm.create_model('vit_tiny_patch16_224', **options)
    layer = find_last_affine(*probe(model, model))
    assert layer is model.head and only_size(model, model) == (32, 16)
    assert [image_size(size) for size in ((3, 32, 16), (32, 16), [32, 32], (24,), 24, None, 'x')] == [
        (32, 16), (32, 16), 32, 24, 24, None, None
    ]  # fmt: skip


class _Head(nn.Module):
    def forward(self, x: Tensor, labels: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return scale * x if labels is None else scale * x - 5 * nn.functional.one_hot(labels, 4)


@pytest.mark.parametrize('how', ['positional', 'keyword'])
def test_logits_are_read_as_of_prediction(how: str) -> None:
    head = _Head()
    x, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    reader = LogitReader(head, ModuleCall(x, 0, 1, frozenset({'scale'})))
    assert head(x, scale=2.0) is not None and reader.take() is None, 'reads inside its context only'
    with reader:
        out = head(x, labels, scale=2.0) if how == 'positional' else head(x, labels=labels, scale=2.0)
    read = reader.take()
    assert read is not None and reader.take() is None
    assert torch.equal(read.logits, 2 * x) and not torch.equal(out, read.logits)
    assert read.feature_norm is None and read.origin is None
    with reader:
        out = head(x, scale=3.0)
    assert reader.take().logits is out, 'what needs no second call gets none'  # type: ignore[union-attr]


def test_two_heads_of_levit_have_none() -> None:
    levit = _arch(
        dict(type='LeViT', arch='128s', img_size=224, patch_size=16, drop_path_rate=0),
        dict(type='LeViTClsHead', in_channels=384, distillation=True),
        _GAP,
    )
    assert _find(build(levit), None) is None
