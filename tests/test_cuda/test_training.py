"""Distilled training on a GPU: AMP, exact resumption, off is plain, no waiting, the cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmpretrain.registry import HOOKS
from torch import nn

from fnkd_plugin.mm.channels_last import has_channels_last_weights
from tests.helpers import (
    MEAN,
    STD,
    assert_same_weights,
    build,
    distilled,
    raw_batch,
    resnet,
    timm_checkpoint,
    timm_teacher,
    train,
)
from tests.test_cache.caches import cached, make_cache
from tests.test_cuda import DEVICE
from tests.test_mm.test_hooks.runs import assert_resumes_exactly, loader, run
from tests.test_mm.test_no_waiting import LOSSES
from tests.test_tools.configs import write_configs
from tests.test_tools.processes import Tools

# No max-pooling, whose gradient is not deterministic.
CIFAR = dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8)
SGD = dict(type='SGD', lr=1e-3, momentum=0.9)
EXACT = dict(seed=1, deterministic=True)
FNKD = dict(type='FNKDLoss')
EMA = dict(type='EMAHook', momentum=0.1)


def student(**options: Any) -> dict:
    return resnet(width=8, backbone=dict(CIFAR), **options)


@HOOKS.register_module(force=True)
class NoteLosses(Hook):
    """Keeps the losses of all iterations."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def after_train_iter(self, runner: Any, *args: Any, outputs: Any = None, **kwargs: Any) -> None:
        self.losses.append({name: float(value.detach()) for name, value in outputs.items()})


def losses_of(model: Any, folder: Path, *hooks: dict, **options: Any) -> list[dict[str, float]]:
    """Of all iterations of a run as ``tools/train.py`` makes it."""
    runner = run(model, folder, custom_hooks=[*hooks, dict(type='NoteLosses')], **options)
    assert next(runner.model.parameters()).device.type == DEVICE
    return next(hook for hook in runner.hooks if isinstance(hook, NoteLosses)).losses


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]], rel: float) -> None:
    """All losses of all iterations."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=rel)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_losses_under_amp_are_finite_and_near_those_of_fp32(dtype: str, tmp_path: Path) -> None:
    model = distilled(student(), timm_teacher(tmp_path), FNKD)
    exact = losses_of(model, tmp_path / 'fp32', optim_wrapper=dict(optimizer=SGD))
    # Not so large a loss scale that the first steps overflow and are left out.
    amp = dict(type='AmpOptimWrapper', dtype=dtype, loss_scale=64.0, optimizer=SGD)
    found = losses_of(model, tmp_path / dtype, optim_wrapper=amp)
    assert_close(found, exact, rel=1e-2)
    assert found != exact


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_under_amp_the_teacher_runs_in_the_students_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(distilled(student(), timm_teacher(tmp_path), FNKD)).to(DEVICE)
    seen: dict[str, torch.dtype] = {}
    for name, network in (('student', model), ('teacher', model.distillation.teacher.model)):
        convolution = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        convolution.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.01), dtype=dtype)
    log = model.train_step(raw_batch(), wrapper)
    assert seen == dict(student=dtype, teacher=dtype)
    assert log['loss_soft'].dtype == torch.float32


@pytest.mark.parametrize('amp', [True, False])
def test_under_amp_the_teacher_runs_in_the_students_memory_order(amp: bool, tmp_path: Path) -> None:
    wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=SGD) if amp else dict(optimizer=SGD)
    hook = dict(type='ChannelsLastHook')
    runner = run(distilled(student(), timm_teacher(tmp_path)), tmp_path, custom_hooks=[hook], optim_wrapper=wrapper)
    assert has_channels_last_weights(runner.model)
    assert has_channels_last_weights(runner.model.distillation.teacher.model) == amp


def test_the_command_line_trains_under_amp_and_compiled(tools: Tools, tmp_path: Path) -> None:
    _, path = write_configs(tmp_path, timm_checkpoint(tmp_path))
    flags = ['--cfg-options', 'train_cfg.max_epochs=1']
    done = tools.run('train.py', path, '--work-dir', tmp_path / 'run', '--amp', '--compile', *flags)
    assert done.code == 0, done.output
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file() and 'trains in eager mode' not in done.output


def test_a_killed_run_resumes_exactly(tools: Tools, tmp_path: Path) -> None:
    _, path = write_configs(tmp_path, timm_checkpoint(tmp_path))
    text = path.read_text().replace("'fnkd_plugin',", "'fnkd_plugin', 'tests.test_tools.killing',")
    path.write_text(text + "custom_hooks = [dict(type='EMAHook', momentum=0.1), dict(type='Kill')]\n")
    # No max-pooling, see above.
    flags = ['--cfg-options', 'model.backbone.type=ResNet_CIFAR', 'randomness.deterministic=True', 'randomness.seed=7']
    whole = tools.run('train.py', path, '--work-dir', tmp_path / 'whole', *flags)
    assert whole.code == 0, whole.output
    killed = tools.run_apart('train.py', path, '--work-dir', tmp_path / 'cut', *flags, KILL_AFTER='6')
    assert killed.code == -9, killed.output
    resumed = tools.run('train.py', path, '--work-dir', tmp_path / 'cut', '--resume', *flags)
    assert resumed.code == 0, resumed.output
    first, second = (torch.load(tmp_path / n / 'epoch_3.pth', weights_only=True) for n in ('whole', 'cut'))
    for key in ('state_dict', 'ema_state_dict'):
        assert_same_weights(first[key], second[key])


def test_a_run_under_amp_resumes_exactly(tmp_path: Path) -> None:
    """With the loss scale."""
    amp = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic', optimizer=SGD)
    model = distilled(student(), timm_teacher(tmp_path), FNKD)
    assert_resumes_exactly(model, tmp_path, randomness=EXACT, optim_wrapper=amp, custom_hooks=[EMA])


def test_weight_0_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    """With mixup and EMA."""
    plain = student(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))
    runs = {
        'plain': plain,
        'off': distilled(plain, timm_teacher(tmp_path), dict(type='FNKDLoss', loss_weight=0.0)),
        'on': distilled(plain, timm_teacher(tmp_path), FNKD),
    }
    found = {}
    for name, model in runs.items():
        train(model, tmp_path / name, randomness=EXACT, custom_hooks=[EMA])
        found[name] = torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False, map_location='cpu')
    for key in ('state_dict', 'ema_state_dict'):
        assert_same_weights(found['off'][key], found['plain'][key])
    assert any(not torch.equal(v, found['on']['state_dict'][k]) for k, v in found['plain']['state_dict'].items())


def _step(model: Any, data: dict) -> None:
    """Forward and backward."""
    sum(model(**data, mode='loss').values()).backward()


@pytest.mark.parametrize('soft_loss', [None, *LOSSES], ids=lambda loss: 'plain' if loss is None else loss['type'])
def test_a_steady_step_does_not_wait_for_the_gpu(soft_loss: dict | None, tmp_path: Path) -> None:
    # Pixels are converted, too.
    teacher = timm_teacher(tmp_path, mean=[100.0] * 3, std=[50.0] * 3)
    model = build(student() if soft_loss is None else distilled(student(), teacher, soft_loss)).to(DEVICE).train()
    data = model.data_preprocessor(raw_batch(), training=True)
    for _ in range(21):  # tau='auto' reads 20 batches
        _step(model, data)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        _step(model, data)
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_what_waits_would_be_noticed(tmp_path: Path) -> None:
    model = build(distilled(student(), timm_teacher(tmp_path, mean=MEAN, std=STD), FNKD)).to(DEVICE)
    data = model.data_preprocessor(raw_batch(), training=True)
    torch.cuda.set_sync_debug_mode('error')
    try:
        with pytest.raises(RuntimeError, match='synchroniz'):
            _step(model, data)  # tau='auto' reads norms of the first batch
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('top_k', [None, 2])
def test_a_cache_made_and_used_on_a_gpu(top_k: int | None, tmp_path: Path) -> None:
    """The losses of one that was made on a CPU."""
    found = []
    for device in ('cpu', DEVICE):
        folder = make_cache(tmp_path / f'cache_{device}', timm_teacher(tmp_path), top_k=top_k, device=device)
        model = distilled(student(), cached(folder), FNKD)
        found.append(losses_of(model, tmp_path / f'run_{device}', randomness=EXACT, train_dataloader=loader()))
    assert_close(found[1], found[0], rel=1e-3)


def test_what_is_logged_is_read_from_the_gpu(tmp_path: Path) -> None:
    runner = run(distilled(student(), timm_teacher(tmp_path), FNKD), tmp_path / 'run')
    for name in ('agreement', 'teacher_acc', 'teacher_norm', 'student_norm', 'hard_ce', 'tau'):
        assert runner.message_hub.get_scalar(f'train/{name}').current() >= 0


def test_a_teacher_that_is_not_finite_is_found(tmp_path: Path) -> None:
    teacher = timm_teacher(tmp_path)
    weights = torch.load(teacher['checkpoint'])
    broken = {k: v * float('nan') if v.is_floating_point() else v for k, v in weights.items()}
    torch.save(broken, teacher['checkpoint'])
    with pytest.raises(FloatingPointError, match='non-finite logits in iteration 1'):
        train(distilled(student(), teacher), tmp_path / 'run')


def test_peak_memory_is_that_of_plain_training(tmp_path: Path) -> None:
    """The teacher's activations are gone before the student's are kept."""
    peaks = {}
    for name, cfg in {'plain': student(), 'distilled': distilled(student(), timm_teacher(tmp_path), FNKD)}.items():
        model = build(cfg).to(DEVICE).train()
        data = model.data_preprocessor(raw_batch(count=256), training=True)
        for _ in range(2):
            _step(model, data)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _step(model, data)
        torch.cuda.synchronize()
        peaks[name] = torch.cuda.max_memory_allocated() - before
        del model
    assert peaks['distilled'] <= peaks['plain'] + data['inputs'].nbytes
