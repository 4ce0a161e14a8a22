"""Any module or function as a teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers import CallableTeacher, PixelFormat
from tests.helpers import CLASSES, MEAN, SIZE, STD, distilled, resnet, train

pytestmark = pytest.mark.upstream

IMAGES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
HALVES: dict[str, Any] = dict(mean=[127.5] * 3, std=[127.5] * 3)


def channel_means(images: Tensor) -> Tensor:
    """Four 'logits' of an image in RGB, values -1 to 1."""
    means = images.mean((2, 3))
    return torch.cat([means, means.sum(1, keepdim=True)], dim=1)


def not_logits(images: Tensor) -> Tensor:
    return images


def test_a_function_gives_logits_of_its_own_format() -> None:
    teacher = CallableTeacher(channel_means, **HALVES)
    assert (teacher.num_classes, teacher.has_feature_norm, teacher.name) == (4, False, 'CallableTeacher(channel_means)')
    teacher.prepare(PixelFormat.of(MEAN[::-1], STD[::-1], 'bgr'))
    shape = (-1, 1, 1)
    pixels = (IMAGES * torch.tensor(STD[::-1]).view(shape) + torch.tensor(MEAN[::-1]).view(shape)).flip(1)
    prediction = teacher.predict(IMAGES)
    torch.testing.assert_close(prediction.logits, channel_means((pixels - 127.5) / 127.5), rtol=1e-4, atol=1e-5)
    assert prediction.feature_norm is None and prediction.origin is None


def test_a_modules_copy_is_frozen_and_has_its_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, CLASSES))
    teacher = CallableTeacher(net, **HALVES)
    own = teacher.model
    assert teacher.has_feature_norm and not own.training and not any(p.requires_grad for p in own.parameters())
    teacher.prepare(teacher.pixels)
    prediction = teacher.predict(IMAGES)
    net.eval()
    with torch.no_grad():
        assert torch.equal(prediction.logits, net(IMAGES))
        torch.testing.assert_close(prediction.feature_norm, net[:4](IMAGES).norm(dim=1))
    assert prediction.origin.data_ptr() == net[4].bias.data_ptr()


def test_the_callers_module_stays_as_it_is() -> None:
    """However many teachers are made of it; weights are shared, not doubled."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)).train()
    teachers = [CallableTeacher(net, **HALVES) for _ in range(3)]
    teachers[0].prepare(teachers[0].pixels)
    teachers[0].predict(IMAGES)
    assert net.training and all(module.training for module in net) and all(p.requires_grad for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    for teacher in teachers:
        for a, b in zip(teacher.model.parameters(), net.parameters(), strict=True):
            assert a.data_ptr() == b.data_ptr() and not a.requires_grad


def test_grey_images() -> None:
    teacher = CallableTeacher(lambda images: images.flatten(1)[:, :CLASSES], mean=[0.0], std=[255.0])
    teacher.prepare(teacher.pixels)
    assert teacher.predict(IMAGES[:, :1]).logits.shape == (4, CLASSES)


def test_teaches_through_the_runner_by_its_name(tmp_path: Path) -> None:
    teacher = dict(type='CallableTeacher', fn='tests.test_teachers.test_callable_teacher.channel_means', **HALVES)
    runner = train(distilled(resnet(), teacher), tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1))
    assert runner.message_hub.get_scalar('train/loss_soft').current() > 0
    with pytest.raises(SetupError, match=r'CallableTeacher\(.*channel_means\) has no single last affine layer'):
        train(distilled(resnet(), teacher, dict(type='FNKDLoss')), tmp_path)


@pytest.mark.parametrize(
    ('fn', 'message'),
    [
        ('nowhere.to_be_found', 'cannot be imported .*package.module.name'),
        ('torch.nothing', 'cannot be imported'),
        ('channel_means', 'cannot be imported'),
        ('torch.nn.Identity', 'must be a module or a function of images'),
        ('math.pi', 'must be a module or a function of images'),
        (not_logits, r'not a tensor of logits \[N, K\], but of shape'),
    ],
)
def test_faults(fn: Any, message: str) -> None:
    with pytest.raises(SetupError, match=f'CallableTeacher.*{message}'):
        CallableTeacher(fn, **HALVES)


def test_an_unknown_format_is_asked_for() -> None:
    with pytest.raises(SetupError, match="teacher's mean and std are unknown"):
        CallableTeacher(channel_means).prepare(PixelFormat.of(MEAN, STD, 'rgb'))
