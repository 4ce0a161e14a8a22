"""Images at a teacher's own size, by its own interpolation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from PIL import Image
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.teachers import CallableTeacher, PixelFormat, TimmTeacher
from fnkd_plugin.teachers.resize import Resize
from tests.helpers import CLASSES, MEAN, SIZE, STD, build, config, resnet, timm_checkpoint, timm_teacher

pytestmark = pytest.mark.upstream

IMAGES = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
SOURCE = PixelFormat.of(MEAN, STD, 'rgb')


def _by_pillow(images: Tensor, size: int | tuple[int, int], how: Image.Resampling) -> Tensor:
    """Each channel as an image of floating point numbers."""
    height, width = (size, size) if isinstance(size, int) else size
    resized = [Image.fromarray(channel.numpy(), 'F').resize((width, height), how) for channel in images.flatten(0, 1)]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resized])).view(*images.shape[:2], height, width)


@pytest.mark.parametrize('size', [24, 80])
@pytest.mark.parametrize('how', ['bilinear', 'bicubic', 'nearest'])
def test_is_pillows_resize(how: str, size: int) -> None:
    """Smaller (antialiased) and larger, of images that are not square."""
    expected = _by_pillow(IMAGES, size, Image.Resampling[how.upper()])
    torch.testing.assert_close(Resize('Me', size, how)(IMAGES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('how', ['box', 'area'])
def test_box_is_the_mean_of_a_block(how: str) -> None:
    halved = Resize('Me', 20, how)(IMAGES[..., :40])
    torch.testing.assert_close(halved, IMAGES[..., :40].unflatten(2, (20, 2)).unflatten(4, (20, 2)).mean((3, 5)))


def test_windows_that_torch_lacks_are_next_to_pillows() -> None:
    """Nearer to what Pillow makes than any other that torch has."""
    names = ('bilinear', 'bicubic', 'nearest', 'box')
    for how in ('lanczos', 'hamming'):
        expected = _by_pillow(IMAGES, 24, Image.Resampling[how.upper()])
        errors = {name: (Resize('Me', 24, name)(IMAGES) - expected).square().mean().item() for name in (how, *names)}
        assert errors[how] == min(errors.values()), errors


def test_what_fits_passes_through_untouched() -> None:
    square = IMAGES[..., :40]
    assert Resize('Me', 40, 'bicubic')(square) is square
    assert Resize('Me', None, 'bicubic')(IMAGES) is IMAGES
    assert str(Resize('Me', 40, 'bilinear')) == '40 px bilinear'
    assert str(Resize('Me', None, 'bilinear')) == "the student's size"


def test_sizes_that_are_not_square() -> None:
    expected = _by_pillow(IMAGES, (24, 80), Image.Resampling.BICUBIC)
    torch.testing.assert_close(Resize('Me', (24, 80), 'bicubic')(IMAGES), expected, rtol=1e-4, atol=1e-4)
    resize = Resize('Me', [40, 56], 'bicubic')  # type: ignore[arg-type]  # a config may hold a list
    assert resize(IMAGES) is IMAGES and resize.size == (40, 56) and str(resize) == '40 x 56 px bicubic'


@pytest.mark.parametrize('size', [0, -8, True, 32.0, '32', (32,), (32, 0), (3, 32, 32)])
def test_sizes_that_are_not_pixels_are_refused(size: Any) -> None:
    with pytest.raises(SetupError, match=r'Me: input_size must be a number of pixels or \(height, width\), but is'):
        Resize('Me', size, 'bicubic')


def test_no_such_interpolation() -> None:
    with pytest.raises(SetupError, match=r'Me: interpolation must be one of nearest, .*area, but is .cubic.'):
        Resize('Me', None, 'cubic')


# Each teacher's own


def _seen(teacher: Any, images: Tensor = IMAGES) -> Tensor:
    """What the model of a teacher is given of a batch in the teacher's own format."""
    seen: list[Tensor] = []
    teacher.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    teacher.prepare(teacher.pixels)
    teacher.predict(images)
    return seen[0]


@pytest.mark.parametrize(('model', 'own'), [('test_resnet', 'bilinear'), ('test_efficientnet', 'bicubic')])
def test_timms_is_the_pretrained_configs(model: str, own: str, tmp_path: Path) -> None:
    path = timm_checkpoint(tmp_path, model)
    assert torch.equal(_seen(TimmTeacher(model, path, input_size=48)), Resize('', 48, own)(IMAGES))
    other = TimmTeacher(model, path, input_size=48, interpolation='nearest')
    assert torch.equal(_seen(other), Resize('', 48, 'nearest')(IMAGES))


RESIZES: dict[str, tuple[list[dict], str]] = {
    'stated': ([dict(type='ResizeEdge', scale=36, interpolation='bicubic', backend='pillow')], 'bicubic'),
    'not stated': (
        [dict(type='ResizeEdge', scale=36, backend='pillow'), dict(type='CenterCrop', crop_size=32)],
        'bilinear',
    ),
    'the last of two': ([dict(type='Resize', scale=36), dict(type='Resize', scale=32, interpolation='area')], 'area'),
    'none': ([], 'bicubic'),
}


@pytest.mark.parametrize('name', RESIZES)
def test_mmpretrains_is_the_test_pipelines(name: str, tmp_path: Path) -> None:
    transforms, own = RESIZES[name]
    cfg = config(resnet(), tmp_path)
    cfg.test_dataloader = dict(dataset=dict(type='RandomImages', pipeline=[*transforms, dict(type='PackInputs')]))
    torch.save(build(resnet()).state_dict(), tmp_path / 'w.pth')
    teacher = MMPretrainTeacher(cfg, tmp_path / 'w.pth', input_size=48)
    assert torch.equal(_seen(teacher), Resize('', 48, own)(IMAGES))


MIXER = dict(embed_dims=16, num_layers=1, tokens_mlp_dims=16, channels_mlp_dims=16)
VIT = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16)


@pytest.mark.parametrize(('kind', 'arch', 'side'), [('MlpMixer', MIXER, 32), ('VisionTransformer', VIT, 64)])
def test_mmpretrains_of_one_size_resize_to_it(kind: str, arch: dict, side: int, tmp_path: Path) -> None:
    """Others, which interpolate their position embeddings, take the student's."""
    backbone = dict(type=kind, arch=arch, img_size=32, patch_size=8)
    backbone |= dict(out_type='avg_featmap') if kind == 'VisionTransformer' else {}
    head = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=16)
    neck = dict(type='GlobalAveragePooling', dim=1) if kind == 'MlpMixer' else None
    cfg = config(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head), tmp_path)
    torch.save(build(cfg.model).state_dict(), tmp_path / 'w.pth')
    teacher = MMPretrainTeacher(cfg, tmp_path / 'w.pth')
    assert _seen(teacher, torch.randn(2, 3, 64, 64)).shape == (2, 3, side, side)


def test_a_callables_is_stated() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    for options, own in ((dict(interpolation='bilinear'), 'bilinear'), ({}, 'bicubic')):
        teacher = CallableTeacher(net, MEAN, STD, input_size=48, **options)
        assert torch.equal(_seen(teacher), Resize('', 48, own)(IMAGES))
    with pytest.raises(SetupError, match=r'CallableTeacher\(Sequential\): interpolation must be one of'):
        CallableTeacher(net, MEAN, STD, interpolation='cubic')


def test_what_each_teacher_sees_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr('fnkd_plugin.teachers.teacher._logger.info', messages.append)
    second = timm_teacher(
        tmp_path, mean=MEAN, std=STD, input_size=(48, 32), execution=dict(dtype='float32', channels_last=True)
    )
    members = [timm_teacher(tmp_path, 'test_vit', img_size=SIZE), second]
    teacher = MODELS.build(dict(type='EnsembleTeacher', teachers=members))
    teacher.prepare(SOURCE)
    teacher.predict(IMAGES[..., :SIZE, :SIZE])
    assert messages == [
        f'TimmTeacher(test_vit): input mean 127.5 127.5 127.5, std 127.5 127.5 127.5, rgb, {SIZE} px bicubic; runs '
        "in the student's autocast dtype (float32 without).",
        'TimmTeacher(test_resnet): input mean 123.67 116.28 103.53, std 58.395 57.12 57.375, rgb, 48 x 32 px bilinear; '
        'runs in float32, channels last.',
    ]
