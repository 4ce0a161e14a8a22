"""A teacher whose output is no number, at run time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner.checkpoint import get_state_dict
from mmpretrain.structures import DataSample

from fnkd_plugin import Prediction
from fnkd_plugin.host_copy import HostCopy
from fnkd_plugin.mm.teacher_guard import TeacherGuard
from tests.helpers import SIZE, build, distilled, resnet, timm_checkpoint, timm_teacher, train

pytestmark = pytest.mark.upstream
IMAGE = torch.zeros(1, 3, SIZE, SIZE)


def _prediction(*bad: int, count: int = 8, value: float = float('nan')) -> Prediction:
    logits = torch.zeros(count, 3)
    logits[list(bad), 1] = value
    return Prediction(logits)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_the_images_are_named(value: float) -> None:
    samples = [DataSample(metainfo=dict(img_path=f'a/{i}.png')) for i in range(8)]
    with pytest.raises(FloatingPointError) as error:
        TeacherGuard('TimmTeacher(x)').check(_prediction(1, 6, value=value), samples)
    text = str(error.value)
    assert 'TimmTeacher(x)' in text and 'a/1.png, a/6.png.' in text and 'NaN or infinite' in text
    assert 'Check the weights of the teacher' in text


def test_of_many_images_the_first_five_are_named() -> None:
    with pytest.raises(FloatingPointError, match='image 4 of the batch and 3 more'):
        TeacherGuard('t').check(_prediction(*range(8)), None)


def test_without_a_path_the_index_is_named() -> None:
    samples = [DataSample(metainfo=dict(sample_idx=40 + i)) for i in range(8)]
    with pytest.raises(FloatingPointError, match='infinite for 43'):
        TeacherGuard('t').check(_prediction(3), samples)


def test_numbers_pass() -> None:
    guard = TeacherGuard('t')
    guard.check(_prediction(), None)
    guard.check(_prediction(0, value=3e38), None)


@pytest.fixture
def _travelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, flags take their time."""
    monkeypatch.setattr(HostCopy, 'is_here', False)


@pytest.mark.usefixtures('_travelling')
def test_an_accelerators_batch_is_looked_at_when_the_next_one_comes() -> None:
    guard = TeacherGuard('t')
    guard.check(_prediction(2), [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(8)])
    with pytest.raises(FloatingPointError, match=r'2\.png'):
        guard.look_back()
    guard.look_back()  # said once


@pytest.mark.usefixtures('_travelling')
@pytest.mark.parametrize(
    'ask', [lambda model: model.state_dict(), get_state_dict, lambda model: model(IMAGE, mode='predict')]
)
def test_an_accelerators_last_batch_is_looked_at_before_a_checkpoint_or_a_validation(ask: Any, tmp_path: Path) -> None:
    model = build(distilled(resnet(), timm_teacher(tmp_path)))
    ask(model.eval())  # nothing to say
    model._distillation.guard.check(_prediction(3), None)
    with pytest.raises(FloatingPointError, match='image 3'):
        ask(model.eval())


def test_a_run_stops_before_the_first_step(tmp_path: Path) -> None:
    checkpoint = timm_checkpoint(tmp_path)
    state = torch.load(checkpoint)
    state['fc.bias'][0] = float('nan')
    torch.save(state, checkpoint)
    teacher = dict(type='TimmTeacher', model='test_resnet', checkpoint=str(checkpoint))
    with pytest.raises(FloatingPointError, match=r'TimmTeacher\(test_resnet\): .*random_\d+\.png'):
        train(distilled(resnet(), teacher), tmp_path)
    assert not list(tmp_path.glob('epoch_*.pth'))
