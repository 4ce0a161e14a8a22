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
from fnkd_plugin.mm.step import Step
from tests.helpers import build, config, distilled, resnet, timm_checkpoint, timm_teacher, train

pytestmark = pytest.mark.upstream


class _Recorder(Hook):
    """Keeps the statistics of each step, computed before the hook under test runs."""

    priority = 'HIGH'

    def __init__(self) -> None:
        self.steps: list[dict] = []

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.steps.append(runner.model.distillation.step.statistics())


def _logged(work_dir: Path) -> list[dict]:
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_distilled_run_has_it_and_no_plain_one(tmp_path: Path) -> None:
    for model, expected in ((resnet(), 0), (distilled(resnet(), timm_teacher(tmp_path)), 1)):
        runner = Runner.from_cfg(config(model, tmp_path))
        assert sum(isinstance(hook, DistillationHook) for hook in runner.hooks) == expected


@pytest.mark.parametrize('by_epoch', [True, False])
def test_the_log_has_the_statistics_of_the_batch_that_is_logged(by_epoch: bool, tmp_path: Path) -> None:
    model = distilled(resnet(), timm_teacher(tmp_path), dict(type='FNKDLoss', tau=0.5), hard_weight=0.25)
    loop = dict(by_epoch=True, max_epochs=2) if by_epoch else dict(by_epoch=False, max_iters=8)
    cfg = config(model, tmp_path, train_cfg=loop)
    cfg.default_hooks.logger.interval = 2
    cfg.log_processor = dict(window_size=1, by_epoch=by_epoch)
    runner = Runner.from_cfg(cfg)
    recorder = _Recorder()
    runner.register_hook(recorder)
    runner.train()
    logged = _logged(tmp_path)
    assert len(logged) == 4 and len(recorder.steps) == 8
    for line, expected in zip(logged, recorder.steps[1::2], strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected)
        assert set(expected) == {'agreement', 'teacher_acc', 'teacher_norm', 'student_norm', 'hard_ce'}
        assert line['loss_hard'] == pytest.approx(0.25 * line['hard_ce'])
        assert line['loss'] == pytest.approx(line['loss_hard'] + line['loss_soft']) and line['tau'] == 0.5


def test_the_last_batch_of_an_epoch_is_logged_and_nothing_is_computed_where_none_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    cfg = config(distilled(resnet(), timm_teacher(tmp_path)), tmp_path)
    cfg.default_hooks.update(logger=dict(type='LoggerHook', interval=3), checkpoint=None)
    runner = Runner.from_cfg(cfg)
    check, statistics = Step.teacher_is_finite, Step.statistics
    monkeypatch.setattr(Step, 'teacher_is_finite', lambda step: computed.append(runner.iter + 1) or check(step))
    monkeypatch.setattr(Step, 'statistics', lambda step: computed.append(runner.iter + 1) or statistics(step))
    runner.train()
    assert computed == [3, 3, 4, 4, 7, 7, 8, 8]


def test_tensors_of_a_step_are_freed_before_the_next(tmp_path: Path) -> None:
    kept: list[Any] = []

    class Watch(Hook):
        priority = 'LOW'

        def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            kept.append(runner.model.distillation.step)

    runner = Runner.from_cfg(config(distilled(resnet(), timm_teacher(tmp_path)), tmp_path))
    runner.register_hook(Watch())
    runner.train()
    assert kept == [None] * 8


class _BreakFrom(Hook):
    """From an iteration on, one of the teacher's logits has a value that it should not have."""

    def __init__(self, iteration: int, value: float = math.nan) -> None:
        self.iteration, self.value = iteration, value

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter + 1 == self.iteration:
            teacher = runner.model.distillation.teacher.model
            teacher.get_classifier().bias.data[0] = self.value


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('interval', [2, 100])
def test_a_broken_teacher_stops_the_run_in_the_iteration_in_which_it_breaks(
    interval: int, value: float, tmp_path: Path
) -> None:
    cfg = config(distilled(resnet(), timm_teacher(tmp_path)), tmp_path)
    cfg.default_hooks.logger.interval = interval
    runner = Runner.from_cfg(cfg)
    runner.register_hook(_BreakFrom(3, value))
    with pytest.raises(FloatingPointError, match=r'TimmTeacher.* in iteration 3\.'):
        runner.train()
    assert runner.iter == 2 and not list(tmp_path.glob('epoch_*.pth'))


@pytest.mark.parametrize('value', [math.nan, -math.inf])
def test_a_broken_teacher_stops_the_run_before_a_checkpoint(value: float, tmp_path: Path) -> None:
    """Also at -inf, which leaves the loss of KD finite."""
    cfg = config(distilled(resnet(), timm_teacher(tmp_path)), tmp_path)
    cfg.default_hooks.logger.interval = 100
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(_BreakFrom(2, value))
    with pytest.raises(FloatingPointError, match=r'in iteration 2\.'):
        runner.train()
    assert not list(tmp_path.glob('iter_*.pth'))


def test_a_student_that_diverges_does_not_blame_its_teacher(tmp_path: Path) -> None:
    runner = train(
        distilled(resnet(), timm_teacher(tmp_path)), tmp_path, optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e30))
    )
    assert not math.isfinite(runner.message_hub.get_scalar('train/loss').current())


class _Silent(ImageClassifier):
    """Its ``train_step`` returns no loss."""

    def train_step(self, data: Any, optim_wrapper: Any) -> dict:
        super().train_step(data, optim_wrapper)
        return {}


def test_where_no_loss_is_logged_each_batch_is_checked(tmp_path: Path) -> None:
    student = build(resnet())
    student.__class__ = _Silent
    teacher = timm_teacher(tmp_path)
    cfg = config(distilled(resnet(), teacher), tmp_path)
    cfg.default_hooks.logger.interval = 100
    runner = Runner.from_cfg(cfg)
    runner.model = Distiller(student, teacher, dict(type='DistillHead', soft_loss=dict(type='KDLoss')))
    runner.register_hook(_BreakFrom(2))
    with pytest.raises(FloatingPointError, match=r'in iteration 2\.'):
        runner.train()


def test_a_teacher_that_is_broken_from_the_start(tmp_path: Path) -> None:
    checkpoint = timm_checkpoint(tmp_path)
    state = torch.load(checkpoint)
    state['fc.bias'][0] = math.inf
    torch.save(state, checkpoint)
    teacher = dict(type='TimmTeacher', model='test_resnet', checkpoint=str(checkpoint))
    with pytest.raises(FloatingPointError, match='iteration 1'):
        train(distilled(resnet(), teacher), tmp_path)


class _Passing(ImageClassifier):
    """Trains without ``forward``, though its docstring contains mode='loss'."""

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


AUTO = [dict(type='FNKDLoss'), dict(type='FNKDLoss', mode='clip')]


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
