"""timm's and MMPretrain's models as frozen teachers."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import scale_by_feature_norm
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.teachers import CallableTeacher, Classes, ModelTeacher, PixelFormat, TimmTeacher
from fnkd_plugin.teachers.options import OPTIONS
from tests.helpers import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    TIMM_HEADS,
    build,
    config,
    distilled,
    preprocessor,
    resnet,
    timm_checkpoint,
    timm_student,
    train,
)

pytestmark = pytest.mark.upstream

# timm's 'test_*' models are normalised by 0.5 and 0.5
HALVES = PixelFormat.of([127.5] * 3, [127.5] * 3, 'rgb')
IMAGES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


# TimmTeacher


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_efficientnet'])
def test_timm_prediction(name: str, tmp_path: Path) -> None:
    """Logits of timm's own model; norm and origin rescale them as rescaling the feature would."""
    teacher = TimmTeacher(name, timm_checkpoint(tmp_path, name))
    teacher.prepare(teacher.pixels)
    assert (teacher.num_classes, teacher.has_feature_norm) == (CLASSES, True)
    prediction = teacher.predict(IMAGES)
    plain = timm.create_model(name, num_classes=CLASSES).eval()
    plain.load_state_dict(torch.load(timm_checkpoint(tmp_path, name)))
    with torch.no_grad():
        assert torch.equal(prediction.logits, plain(IMAGES))
        feature = plain.forward_head(plain.forward_features(IMAGES), pre_logits=True)
        torch.testing.assert_close(prediction.feature_norm, feature.norm(dim=1))
        half = plain.get_classifier()(feature / feature.norm(dim=1, keepdim=True))
        torch.testing.assert_close(scale_by_feature_norm(*prediction, 1.0, 'normalize'), half, rtol=1e-4, atol=1e-4)


def test_timms_normalisation_is_the_default_and_can_be_replaced(tmp_path: Path) -> None:
    assert TimmTeacher('test_resnet', timm_checkpoint(tmp_path)).pixels == HALVES
    other = TimmTeacher('test_resnet', timm_checkpoint(tmp_path), mean=MEAN, std=STD)
    assert other.pixels == PixelFormat.of(MEAN, STD, 'rgb')


def test_class_count_comes_from_the_checkpoint(tmp_path: Path) -> None:
    assert TimmTeacher('test_resnet', timm_checkpoint(tmp_path, num_classes=7)).num_classes == 7


@pytest.mark.parametrize('form', ['pth', 'safetensors', 'ema', 'ddp'])
def test_forms_of_checkpoints(form: str, tmp_path: Path) -> None:
    state = torch.load(timm_checkpoint(tmp_path))
    path = tmp_path / f'weights.{"safetensors" if form == "safetensors" else "pth"}'
    if form == 'safetensors':
        safetensors.torch.save_file(state, path)
    elif form == 'ema':
        torch.save(dict(state_dict={k: v * 0 for k, v in state.items()}, state_dict_ema=state), path)
    else:
        torch.save({f'module.{k}': v for k, v in state.items()} if form == 'ddp' else dict(state_dict=state), path)
    teacher = TimmTeacher('test_resnet', path)
    assert all(torch.equal(v, state[k]) for k, v in teacher.model.state_dict().items())


def test_timm_models_without_a_pretrained_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm has none for models that users register without."""
    path = timm_checkpoint(tmp_path)
    monkeypatch.setattr(timm, 'get_pretrained_cfg', lambda model: None)
    assert TimmTeacher('test_resnet', path, num_classes=CLASSES).num_classes == CLASSES


def test_unknown_timm_tags_and_arguments_are_refused(tmp_path: Path) -> None:
    path = timm_checkpoint(tmp_path)
    with pytest.raises(SetupError, match=r'TimmTeacher\(resnet18.bogus\): .*bogus.*a1_in1k'):
        TimmTeacher('resnet18.bogus', path)
    with pytest.raises(SetupError, match=r'TimmTeacher\(test_resnet\): .*checkpoint='):
        TimmTeacher('test_resnet', pretrained=True, checkpoint_path=path)


def test_fixed_sizes_are_kept(tmp_path: Path) -> None:
    """A vision transformer of a fixed size gets images of its size."""
    seen: list[torch.Size] = []
    teacher = TimmTeacher('test_vit', timm_checkpoint(tmp_path, 'test_vit'))
    teacher.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    teacher.prepare(HALVES)
    teacher.predict(IMAGES)
    assert teacher.input_size == (160, 160) and seen == [(4, 3, 160, 160)]
    small = TimmTeacher('test_vit', timm_checkpoint(tmp_path, 'test_vit', img_size=SIZE), img_size=SIZE)
    small.prepare(HALVES)
    assert small.input_size == (SIZE, SIZE)
    assert small.predict(IMAGES).logits.shape == (4, CLASSES)


NOT_SQUARE: dict[str, Any] = dict(img_size=(64, 32), embed_dim=32, depth=2, num_heads=2)


@pytest.mark.parametrize('stated', [{}, dict(input_size=(64, 32))])
def test_fixed_sizes_that_are_not_square(stated: dict, tmp_path: Path) -> None:
    name = 'vit_tiny_patch16_224'
    teacher = TimmTeacher(name, timm_checkpoint(tmp_path, name, **NOT_SQUARE), **NOT_SQUARE, **stated)
    assert teacher.input_size == (64, 32)
    teacher.prepare(teacher.pixels)
    exact, other = torch.randn(2, 3, 64, 32), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(teacher.predict(exact).logits, teacher.model(exact))
    assert teacher.predict(other).logits.shape == (2, CLASSES)


def test_a_fixed_size_given_by_the_user(tmp_path: Path) -> None:
    """LeViT holds its size nowhere but in the shapes of its weights."""
    name, options, _ = TIMM_HEADS['mean of two']
    options = dict(options, img_size=64)
    teacher = TimmTeacher(name, timm_checkpoint(tmp_path, name, **options), **options)
    teacher.prepare(teacher.pixels)
    assert teacher.predict(IMAGES).logits.shape == (4, CLASSES)


def test_channels_last_changes_rounding_only(tmp_path: Path) -> None:
    predictions = []
    for channels_last in (False, True):
        teacher = TimmTeacher('test_resnet', timm_checkpoint(tmp_path), execution=dict(channels_last=channels_last))
        teacher.prepare(HALVES)
        predictions.append(teacher.predict(IMAGES))
    torch.testing.assert_close(predictions[0].logits, predictions[1].logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictions[0].feature_norm, predictions[1].feature_norm, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', TIMM_HEADS)
def test_each_kind_of_timm_head_teaches(kind: str, tmp_path: Path) -> None:
    """Bit for bit as the plain model; where it averages several heads there is no feature norm."""
    name, options, where = TIMM_HEADS[kind]
    teacher = TimmTeacher(name, timm_checkpoint(tmp_path, name, **options), **options)
    teacher.prepare(teacher.pixels)
    plain = timm.create_model(name, num_classes=CLASSES, **options).eval()
    plain.load_state_dict(torch.load(timm_checkpoint(tmp_path, name, **options)))
    size = timm.get_pretrained_cfg(name).input_size[-1]
    images = torch.randn(2, 3, size, size)
    prediction = teacher.predict(images)
    with torch.no_grad():
        assert torch.equal(prediction.logits, plain(images))
    assert teacher.has_feature_norm == (where is not None)
    assert (prediction.feature_norm is None) == (where is None)


def test_a_timm_teacher_without_a_classifier(tmp_path: Path) -> None:
    options = dict(depth=1, embed_dim=16, num_heads=1)
    weights = timm_checkpoint(tmp_path, 'gemma4_vit_167m_enc', **options)
    with pytest.raises(SetupError, match=r'TimmTeacher\(gemma4_vit_167m_enc\): .* has no classifier'):
        TimmTeacher('gemma4_vit_167m_enc', weights, **options)


def test_outputs_that_are_not_logits() -> None:
    net = nn.Conv2d(3, 4, 1)
    with pytest.raises(SetupError, match=r'Net: its output is not a tensor of logits \[N, K\], but of shape \(1, 4, '):
        ModelTeacher(net, net, HALVES, 'Net')
    with pytest.raises(SetupError, match='but tuple'):
        ModelTeacher(net, lambda images: (net(images),), HALVES, 'Net')  # type: ignore[arg-type, return-value]


# Options


def test_a_wrong_option_is_named_with_those_there_are(zoo: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """In Python and in configs; timm's own errors name the model."""
    teachers: list[dict] = [
        dict(type='CallableTeacher', fn='torch.nn.functional.relu'),
        dict(type='MMPretrainTeacher', config=str(zoo[0]), checkpoint=str(zoo[1])),
    ]
    for teacher in teachers:
        with pytest.raises(SetupError, match=r'unknown option inputsize; .* mean, std, channel_order, input_size, '):
            build(dict(**teacher, inputsize=32))
    with pytest.raises(SetupError, match=r'TimmTeacher\(test_resnet\): timm cannot create it: .*inputsize'):
        TimmTeacher('test_resnet', timm_checkpoint(tmp_path), inputsize=32)


def test_every_teacher_accepts_every_option(zoo: tuple[Path, Path, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = dict(
        mean=MEAN,
        std=STD,
        channel_order='bgr',
        input_size=(48, 40),
        interpolation='nearest',
        execution=dict(channels_last=True),
        class_map=['c', 'a'],
        classes=['a', 'b', 'c', 'd'],
    )
    assert tuple(options) == OPTIONS
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    for teacher in (
        CallableTeacher(net, **options),
        TimmTeacher('test_resnet', timm_checkpoint(tmp_path), **options),
        MMPretrainTeacher(zoo[0], zoo[1], **options),
        ModelTeacher(net, net, HALVES, 'Net', 16, 'bilinear', Classes(['x'] * CLASSES), **options),
    ):
        assert teacher.pixels == PixelFormat.of(MEAN, STD, 'bgr') and teacher.input_size == (48, 40)
        assert (teacher.num_classes, teacher.class_map.own.names) == (2, ['a', 'b', 'c', 'd'])
        assert str(teacher._resize) == '48 x 40 px nearest' and 'channels last' in str(teacher._run)


def test_options_that_are_none_leave_what_the_model_has(zoo: tuple[Path, Path, Any]) -> None:
    own, same = (MMPretrainTeacher(zoo[0], zoo[1], **options) for options in ({}, dict.fromkeys(OPTIONS)))
    assert (own.pixels, str(own._resize), str(own._run)) == (same.pixels, str(same._resize), str(same._run))


# MMPretrainTeacher


@pytest.fixture
def zoo(tmp_path: Path) -> tuple[Path, Path, Any]:
    """A config file and a checkpoint of a trained ResNet, and the model."""
    runner = train(resnet(), tmp_path / 'run', train_cfg=dict(by_epoch=True, max_epochs=1))
    config(resnet(), tmp_path).dump(tmp_path / 'teacher.py')
    return tmp_path / 'teacher.py', tmp_path / 'run' / 'epoch_1.pth', runner.model.eval()


def test_mmpretrain_prediction(zoo: tuple[Path, Path, Any]) -> None:
    path, checkpoint, model = zoo
    teacher = MMPretrainTeacher(str(path), checkpoint)
    assert (teacher.num_classes, teacher.has_feature_norm) == (CLASSES, True)
    assert teacher.pixels.channel_order == 'rgb' and list(teacher.pixels.mean) == pytest.approx(MEAN)
    teacher.prepare(teacher.pixels)
    prediction = teacher.predict(IMAGES)
    with torch.no_grad():
        assert torch.equal(prediction.logits, model(IMAGES))
        torch.testing.assert_close(prediction.feature_norm, model.extract_feat(IMAGES)[-1].norm(dim=1))
    assert torch.equal(prediction.origin, model.head.fc.bias)
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_mmpretrain_teaches_through_the_runner(zoo: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """From a config path; and a distilled config as a teacher gives its student."""
    path, checkpoint, _ = zoo
    teacher = dict(type='MMPretrainTeacher', config=str(path), checkpoint=str(checkpoint))
    runner = train(distilled(timm_student(), teacher, dict(type='FNKDLoss')), tmp_path / 'one')
    assert runner.message_hub.get_scalar('train/teacher_norm').current() > 0
    runner.cfg.dump(tmp_path / 'one.py')
    again = MMPretrainTeacher(tmp_path / 'one.py', tmp_path / 'one' / 'epoch_2.pth')
    assert type(again.model).__name__ == 'TimmStudent'
    again.prepare(again.pixels)
    with torch.no_grad():
        assert torch.equal(again.predict(IMAGES).logits, runner.model.eval()(IMAGES))


def test_mmpretrain_needs_no_pretrained_weights_of_the_config(tmp_path: Path) -> None:
    """Those that a checkpoint replaces are neither fetched nor read."""
    student = timm_student(checkpoint='/nowhere.pth')
    torch.save(build(timm_student()).state_dict(), tmp_path / 'w.pth')
    assert MMPretrainTeacher(config(student, tmp_path), tmp_path / 'w.pth').num_classes == CLASSES


def test_mmpretrain_teachers_of_other_tasks(tmp_path: Path) -> None:
    head = dict(type='MultiLabelLinearClsHead', num_classes=CLASSES, in_channels=32)
    model = resnet(head=head)
    torch.save(build(model).state_dict(), tmp_path / 'w.pth')
    message = r'MMPretrainTeacher\(Config\): the teacher is a multi-label classifier \(MultiLabelLinearClsHead\)'
    with pytest.raises(SetupError, match=message):
        MMPretrainTeacher(config(model, tmp_path), tmp_path / 'w.pth')


@pytest.mark.parametrize('options', [dict(channel_order='rgb'), dict(mean=MEAN, std=STD), {}])
def test_mmpretrain_with_an_unknown_format(options: dict, tmp_path: Path) -> None:
    """``to_rgb=False`` and normalising in the pipeline leave it open; options state it, errors ask for them."""
    unknown = {**preprocessor(), 'to_rgb': False} if 'mean' not in options else dict(num_classes=4, to_rgb=True)
    torch.save(build(resnet()).state_dict(), tmp_path / 'w.pth')
    cfg = config(resnet(data_preprocessor=unknown), tmp_path)
    teacher = MMPretrainTeacher(cfg, tmp_path / 'w.pth', **options)
    if options:
        teacher.prepare(PixelFormat.of(MEAN, STD, 'rgb'))
        assert teacher.pixels.channel_order == 'rgb' and list(teacher.pixels.mean) == pytest.approx(MEAN)
    else:
        with pytest.raises(SetupError, match=r"the teacher's channel order is unknown\. State .* its own options"):
            teacher.prepare(PixelFormat.of(MEAN, STD, 'rgb'))


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        (dict(config='nowhere.py'), ['MMPretrainTeacher(nowhere.py)', 'There is no config file nowhere.py']),
        (
            dict(config='resnet19_of_mine'),
            ['MMPretrainTeacher(resnet19_of_mine)', 'config file (*.py)', 'model zoo'],
        ),
        (dict(config='FILE'), ['teacher.py)', 'trained weights', 'checkpoint=FILE']),
        (dict(config='EMPTY', checkpoint='RIGHT'), ['empty.py): ', 'has no model']),
        (
            dict(config='FILE', checkpoint='OTHER'),
            ['teacher.py)', 'other.pth', 'do not fit', 'head.fc.weight is (7, 32)'],
        ),
        (dict(config='FILE', checkpoint='OTHER', channel_order='x'), ['teacher.py)', 'do not fit']),
        (
            dict(config='FILE', checkpoint='RIGHT', channel_order='x'),
            ['teacher.py)', "channel_order must be 'rgb' or 'bgr'"],
        ),
    ],
)
def test_mmpretrain_faults(options: dict, parts: list[str], tmp_path: Path) -> None:
    config(resnet(), tmp_path).dump(tmp_path / 'teacher.py')
    torch.save(build(resnet(num_classes=7)).state_dict(), tmp_path / 'other.pth')
    torch.save(build(resnet()).state_dict(), tmp_path / 'right.pth')
    (tmp_path / 'empty.py').write_text('a = 1\n')
    files = dict(
        EMPTY=tmp_path / 'empty.py',
        FILE=tmp_path / 'teacher.py',
        OTHER=tmp_path / 'other.pth',
        RIGHT=tmp_path / 'right.pth',
    )
    with pytest.raises(SetupError) as error:
        MMPretrainTeacher(**{key: files.get(value, value) for key, value in options.items()})
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)
