"""timm models as MMPretrain classifiers whose checkpoints are timm's own."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn

from fnkd_plugin.errors import SetupError
from tests.helpers import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    TIMM_HEADS,
    build,
    distilled,
    raw_batch,
    timm_checkpoint,
    timm_head,
    timm_student,
    train,
)

pytestmark = pytest.mark.upstream

NAMES = ['test_resnet', 'test_convnext', 'test_efficientnet']
IMAGES = torch.randn(2, 3, SIZE, SIZE)


@pytest.mark.parametrize('name', NAMES)
def test_state_dict_is_timms_and_comes_back(name: str, tmp_path: Path) -> None:
    student, theirs = build(timm_student(name)), timm.create_model(name, num_classes=CLASSES)
    assert list(student.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(student.state_dict(), strict=True)
    other = build(timm_student(name), seed=1)
    assert str(other.load_state_dict(theirs.state_dict(), strict=True)) == '<All keys matched successfully>'
    assert torch.equal(other.eval()(IMAGES), theirs.eval()(IMAGES))
    torch.save(dict(state_dict=student.state_dict()), tmp_path / 'w.pth')
    loaded = timm.create_model(name, num_classes=CLASSES, checkpoint_path=str(tmp_path / 'w.pth'))
    assert torch.equal(loaded.eval()(IMAGES), student.eval()(IMAGES))


@pytest.mark.parametrize('how', ['torch', 'mmengine'])
@pytest.mark.parametrize('wrap', [1, 2])
def test_nested_in_other_modules(wrap: int, how: str) -> None:
    """PyTorch's and MMEngine's recursions ignore what a nested module's hook returns."""

    def nested(seed: int) -> nn.Module:
        model: nn.Module = build(timm_student(), seed)
        for _ in range(wrap):
            model = nn.ModuleDict(dict(module=model, other=nn.Linear(2, 2)))
        return model

    first, second = nested(0), nested(1)
    state = first.state_dict() if how == 'torch' else get_state_dict(first)
    prefix = 'module.' * wrap
    keys = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
    assert keys == list(timm.create_model('test_resnet', num_classes=CLASSES).state_dict())
    if how == 'torch':
        second.load_state_dict(state, strict=True)
    else:
        load_state_dict(second, copy.deepcopy(state), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_ema_reloads() -> None:
    student = build(timm_student())
    ema = ExponentialMovingAverage(student, momentum=0.5)
    with torch.no_grad():
        student.model.fc.weight.add_(1)
    ema.update_parameters(student)
    other = ExponentialMovingAverage(build(timm_student(), seed=1))
    other.load_state_dict(ema.state_dict(), strict=True)
    assert torch.equal(other.module.model.fc.weight, ema.module.model.fc.weight)


def test_the_stock_timm_classifier_loads_it() -> None:
    student = build(timm_student())
    stock = build(
        {
            **{k: v for k, v in timm_student().items() if k != 'model'},
            'type': 'TimmClassifier',
            'model_name': 'test_resnet',
        },
        seed=1,
    )
    stock.load_state_dict(student.state_dict(), strict=True)
    assert torch.equal(stock.eval()(IMAGES), student.eval()(IMAGES))
    student.load_state_dict(stock.state_dict(), strict=True)


@pytest.mark.parametrize('options', [{}, dict(channels_last=True), dict(with_cp=True), dict(drop_rate=0.3)])
def test_trains_as_the_stock_timm_classifier(options: dict) -> None:
    cfg = timm_student(**options)
    stock = {k: v for k, v in cfg.items() if k not in ('model', 'channels_last')}
    losses = []
    for model in (build(cfg), build(dict(stock, type='TimmClassifier', model_name='test_resnet'), seed=1)):
        model.load_state_dict(build(timm_student()).state_dict())
        data = model.data_preprocessor(raw_batch(), training=True)
        torch.manual_seed(0)
        losses.append(model(**data, mode='loss')['loss'])
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_channels_last_is_kept() -> None:
    model = build(timm_student(channels_last=True))
    seen = []
    model.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(IMAGES)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert model.model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_net_whose_gradients_overwrite_memory_is_not_trained_in_channels_last() -> None:
    """On a CPU; it predicts, and trains in the usual order."""
    narrow = dict(model='resnet18', channels=(4, 8, 16, 32))
    for channels_last in (False, True):
        model = build(timm_student(channels_last=channels_last, **narrow))
        data = model.data_preprocessor(raw_batch(), training=True)
        assert model(data['inputs']).shape == (4, CLASSES)
        if not channels_last:
            assert torch.isfinite(model(**data, mode='loss')['loss'])
            continue
        message = r'TimmStudent: layer2\.0\.downsample\.0, a strided 1x1 convolution of 4 input.* without channels_last'
        with pytest.raises(SetupError, match=message):
            model(**data, mode='loss')


@pytest.mark.parametrize('name', [*NAMES, 'test_vit'])
def test_starts_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Also where timm's model has an ``init_weights``, which MMEngine calls before training."""
    path = timm_checkpoint(tmp_path, name)
    state = torch.load(path)
    student = build(timm_student(name, checkpoint=str(path)))
    assert all(torch.equal(v, state[k]) for k, v in student.state_dict().items())


def test_a_run_starts_from_a_checkpoint(tmp_path: Path) -> None:
    path = timm_checkpoint(tmp_path)
    frozen = dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)))
    runner = train(timm_student(checkpoint=str(path)), tmp_path / 'run', **frozen)
    state = torch.load(path)
    assert all(torch.equal(p, state[name.removeprefix('model.')]) for name, p in runner.model.named_parameters())


def test_a_classifier_of_other_classes_is_initialised_randomly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr('fnkd_plugin.mm.models.timm_student.print_log', lambda text, **_: logged.append(text))
    path = timm_checkpoint(tmp_path, num_classes=7)
    student, state = build(timm_student(checkpoint=str(path))), torch.load(path)
    assert student.model.fc.weight.shape == (CLASSES, 96)
    assert all(torch.equal(v, state[k]) for k, v in student.state_dict().items() if not k.startswith('fc.'))
    assert 'another number of classes' in logged[0] and 'fc.weight, fc.bias are initialised randomly' in logged[0]


def test_a_pretrained_classifier_of_other_classes_is_initialised_randomly(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr('fnkd_plugin.mm.models.timm_student.print_log', lambda text, **_: logged.append(text))
    create = timm.create_model
    monkeypatch.setattr('timm.models.create_model', lambda *args, pretrained, **kwargs: create(*args, **kwargs))
    build(timm_student(pretrained=True))
    assert 'the pretrained weights have 1000 classes' in logged[0] and 'initialised randomly' in logged[0]
    build(dict(timm_student(pretrained=True), num_classes=1000))
    build(timm_student())
    assert len(logged) == 1


@pytest.mark.parametrize('kind', TIMM_HEADS)
def test_each_kind_of_head_learns_and_starts_again(kind: str, tmp_path: Path) -> None:
    """Those that average several heads learn from KD, and say why FNKD is not for them."""
    name, options, where = TIMM_HEADS[kind]
    cfg = timm_student(name, **options)
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    teacher = dict(type='CallableTeacher', fn=tiny, mean=MEAN, std=STD)
    size = timm.get_pretrained_cfg(name).input_size[-1]
    fnkd = distilled(cfg, teacher, dict(type='FNKDLoss'))
    if where is None:
        with pytest.raises(SetupError, match=r'feature norms, but the logits of TimmStudent .*; use KDLoss'):
            build(fnkd)
    student = build(distilled(cfg, teacher) if where is None else fnkd)
    student.train_step(raw_batch(size=size), OptimWrapper(torch.optim.SGD(student.parameters(), 0.1)))
    assert list(student.state_dict()) == list(timm_head(kind)[0].state_dict())
    images = torch.randn(2, 3, size, size)
    torch.save(student.state_dict(), tmp_path / 'w.pth')
    again = build(timm_student(name, checkpoint=str(tmp_path / 'w.pth'), **options))
    assert torch.equal(again.eval()(images), student.eval()(images))
    other = build({**timm_student(name, checkpoint=str(tmp_path / 'w.pth'), **options), 'num_classes': CLASSES + 1})
    assert other.eval()(images).shape == (2, CLASSES + 1)


def test_a_model_of_another_size_than_timms() -> None:
    """LeViT holds its size nowhere but in the shapes of its weights."""
    name, options, _ = TIMM_HEADS['mean of two']
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    teacher = dict(type='CallableTeacher', fn=tiny, mean=MEAN, std=STD)
    student = build(distilled(timm_student(name, img_size=64, **options), teacher))
    assert student.eval()(torch.randn(2, 3, 64, 64)).shape == (2, CLASSES)


def test_a_model_without_a_classifier() -> None:
    with pytest.raises(SetupError, match=r'TimmStudent\(gemma4_vit_167m_enc\): .* has no classifier'):
        build(timm_student('gemma4_vit_167m_enc', depth=1, embed_dim=16, num_heads=1))
    with pytest.raises(SetupError, match=r'TimmStudent\(test_vit\): .* has no classifier'):
        build({**timm_student('test_vit'), 'num_classes': 0})


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r'TimmStudent\(test_resnett\).*Did you mean .*test_resnet'):
        build(timm_student('test_resnett'))
    other = timm_checkpoint(tmp_path, 'test_efficientnet')
    with pytest.raises(SetupError, match=r'TimmStudent\(test_resnet\) and .*missing .*another architecture'):
        build(timm_student(checkpoint=str(other)))
    with pytest.raises(SetupError, match=r'TimmStudent\(test_resnet\): timm cannot create it.*depht'):
        build(timm_student(depht=3))
    with pytest.raises(SetupError, match=r'TimmStudent\(resnet18.bogus\): .*bogus.*a1_in1k'):
        build(timm_student('resnet18.bogus'))
    with pytest.raises(SetupError, match=r'TimmStudent\(test_resnet\): .*checkpoint='):
        build(timm_student(checkpoint_path=str(other)))
