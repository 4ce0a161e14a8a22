"""The log of a distilled run, the check of its teacher, and soft losses in checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier

from fnkd_plugin import Distiller
from fnkd_plugin.losses import FNKDLoss
from fnkd_plugin.mm.hooks.distillation_hook import SOFT_LOSSES, DistillationHook
from fnkd_plugin.mm.step import means
from tests.helpers import build, config, distilled, resnet, timm_checkpoint, timm_teacher, train

pytestmark = pytest.mark.upstream


class _Recorder(Hook):
    """Keeps each step's statistics."""

    priority = 'HIGH'

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.steps.append(runner.model.distillation.step)


def _logged(work_dir: Path) -> list[dict]:
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_distilled_run_has_it_and_no_plain_one(tmp_path: Path) -> None:
    for model, expected in ((resnet(), 0), (distilled(resnet(), timm_teacher(tmp_path)), 1)):
        runner = Runner.from_cfg(config(model, tmp_path))
        assert sum(isinstance(hook, DistillationHook) for hook in runner.hooks) == expected


@pytest.mark.parametrize('by_epoch', [True, False])
def test_the_log_has_means_since_the_last_time(by_epoch: bool, tmp_path: Path) -> None:
    model = distilled(resnet(), timm_teacher(tmp_path), dict(type='FNKDLoss', tau=0.5), hard_weight=0.25)
    loop = dict(by_epoch=True, max_epochs=2) if by_epoch else dict(by_epoch=False, max_iters=8)
    cfg = config(model, tmp_path, train_cfg=loop)
    cfg.default_hooks.logger.interval = 2
    cfg.log_processor = dict(window_size=2, by_epoch=by_epoch)
    runner = Runner.from_cfg(cfg)
    recorder = _Recorder()
    runner.register_hook(recorder)
    runner.train()
    logged = _logged(tmp_path)
    assert len(logged) == 4
    for i, line in enumerate(logged):
        expected = means(recorder.steps[2 * i : 2 * i + 2])
        assert {name: line[name] for name in expected} == pytest.approx(expected)
        assert set(expected) == {'agreement', 'teacher_acc', 'teacher_norm', 'student_norm', 'hard_ce'}
        assert line['loss_hard'] == pytest.approx(0.25 * line['hard_ce'])
        assert line['loss'] == pytest.approx(line['loss_hard'] + line['loss_soft']) and line['tau'] == 0.5


class _BreakFrom(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter + 1 == self.iteration:
            teacher = runner.model.distillation.teacher.model
            teacher.get_classifier().bias.data[0] = math.nan


@pytest.mark.parametrize(('interval', 'checked'), [(2, '3 to 4'), (100, '1 to 4')])
def test_a_broken_teacher_stops_the_run_when_it_is_logged(interval: int, checked: str, tmp_path: Path) -> None:
    cfg = config(distilled(resnet(), timm_teacher(tmp_path)), tmp_path)
    cfg.default_hooks.logger.interval = interval
    runner = Runner.from_cfg(cfg)
    runner.register_hook(_BreakFrom(3))
    with pytest.raises(FloatingPointError, match=rf'TimmTeacher.* in iteration 3; iterations {checked} were checked'):
        runner.train()
    assert not list(tmp_path.glob('epoch_*.pth'))


def test_a_broken_teacher_stops_the_run_before_a_checkpoint(tmp_path: Path) -> None:
    cfg = config(distilled(resnet(), timm_teacher(tmp_path)), tmp_path)
    cfg.default_hooks.logger.interval = 100
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(_BreakFrom(2))
    with pytest.raises(FloatingPointError, match='iteration 2; iterations 1 to 2 were'):
        runner.train()
    assert not list(tmp_path.glob('iter_*.pth'))


def test_a_teacher_that_is_broken_from_the_start(tmp_path: Path) -> None:
    checkpoint = timm_checkpoint(tmp_path)
    state = torch.load(checkpoint)
    state['fc.bias'][0] = math.inf
    torch.save(state, checkpoint)
    teacher = dict(type='TimmTeacher', model='test_resnet', checkpoint=str(checkpoint))
    with pytest.raises(FloatingPointError, match='iteration 1'):
        train(distilled(resnet(), teacher), tmp_path)


class _Passing(ImageClassifier):
    """Trains without ``forward``, though its text says mode='loss'."""

    def train_step(self, data: Any, optim_wrapper: Any) -> dict:
        data = self.data_preprocessor(data, True)
        loss, log = self.parse_losses(self.loss(data['inputs'], data['data_samples']))  # not mode='loss'
        optim_wrapper.update_params(loss)
        return log


def test_a_student_that_bypasses_forward_is_refused_in_the_first_iteration(tmp_path: Path) -> None:
    student = build(resnet())
    student.__class__ = _Passing
    teacher = timm_teacher(tmp_path)
    runner = Runner.from_cfg(config(distilled(resnet(), teacher), tmp_path))
    runner.model = Distiller(student, teacher, dict(type='DistillHead', soft_loss=dict(type='KDLoss')))
    with pytest.raises(RuntimeError, match=r"_Passing trains without calling forward\(mode='loss'\)"):
        runner.train()
    assert runner.iter == 0


AUTO = [dict(type='FNKDLoss'), dict(type='FNKDLoss', mode='normalize')]


def test_checkpoints_hold_each_soft_loss_and_a_loss_made_meanwhile_changes_nothing(tmp_path: Path) -> None:
    class Making(Hook):
        def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
            FNKDLoss()

    model = distilled(resnet(), timm_teacher(tmp_path), AUTO)
    runner = Runner.from_cfg(config(model, tmp_path))
    runner.register_hook(Making())
    runner.train()
    stored = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['message_hub']['runtime_info'][SOFT_LOSSES]
    assert set(stored) == {'loss_soft_fnkd', 'loss_soft_fnkd_2'}
    assert [state['batches'] for state in stored.values()] == [4, 4]

    for resume in (True, False):
        cfg = config(model, tmp_path, resume=resume, load_from=str(tmp_path / 'epoch_1.pth'))
        again = Runner.from_cfg(cfg)
        again.load_or_resume()
        again.call_hook('before_train')
        losses = again.model.distillation.head.soft_losses
        begun = [loss.get_extra_state()['batches'] for loss in losses]
        assert begun == ([4, 4] if resume else [0, 0]), 'load_from begins another run'
        if resume:
            assert [loss.get_extra_state() for loss in losses] == list(stored.values())
