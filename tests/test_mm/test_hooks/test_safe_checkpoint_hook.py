"""A run always has a complete checkpoint to resume from, and refuses one it cannot resume."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import Runner

from fnkd_plugin.errors import SetupError
from tests.hostile import replaced
from tests.test_mm.doors import MODEL, VALIDATION, train
from tests.test_mm.test_hooks.runs import CutOffError, assert_resumes_exactly, run

TWO = dict(train_cfg=dict(by_epoch=True, max_epochs=2))


def _checkpoint(**options: Any) -> dict:
    return dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', **{'interval': 1, **options})))


@pytest.mark.parametrize('fault', ['empty', 'missing', 'moved', 'truncated'])
@pytest.mark.upstream
def test_resumes_from_the_newest_whole_checkpoint(fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = run(MODEL, tmp_path / 'run', train_cfg=dict(by_epoch=True, max_epochs=11))
    pointer, last = tmp_path / 'run' / 'last_checkpoint', tmp_path / 'run' / 'epoch_11.pth'
    expected = 'epoch_11.pth'
    if fault == 'empty':
        pointer.write_text('')
    elif fault == 'missing':
        pointer.unlink()
    elif fault == 'moved':
        pointer.write_text('/nowhere/epoch_11.pth')
    else:
        last.write_bytes(last.read_bytes()[:1000])
        expected = 'epoch_10.pth'
    resumed = run(MODEL, tmp_path / 'run', resume=True, train_cfg=dict(by_epoch=True, max_epochs=12))
    assert Path(resumed._load_from).name == expected
    assert resumed.iter == whole.iter // 11 * 12


def test_a_run_without_checkpoints_starts_anew(tmp_path: Path) -> None:
    assert run(MODEL, tmp_path, resume=True, **TWO).iter == 8


def test_last_checkpoint_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it writes: the checkpoint before, and what names it, are untouched."""
    run(MODEL, tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1), **_checkpoint(max_keep_ckpts=1))
    before = {name: (tmp_path / name).read_bytes() for name in ('epoch_1.pth', 'last_checkpoint')}

    def killed(self: Runner, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        Path(out_dir, filename).write_bytes(b'half')
        raise CutOffError

    with monkeypatch.context() as patch, pytest.raises(CutOffError):
        patch.setattr(Runner, 'save_checkpoint', killed)
        run(MODEL, tmp_path, resume=True, **TWO, **_checkpoint(max_keep_ckpts=1))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert run(MODEL, tmp_path, resume=True, **TWO, **_checkpoint(max_keep_ckpts=1)).iter == 8
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['epoch_2.pth']


@pytest.mark.parametrize('kept', [1, 2, -1])
def test_as_many_are_kept_as_requested(kept: int, tmp_path: Path) -> None:
    run(MODEL, tmp_path, train_cfg=dict(by_epoch=True, max_epochs=4), **_checkpoint(max_keep_ckpts=kept))
    names = [f'epoch_{i}.pth' for i in range(1, 5)]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == (names if kept < 0 else names[-kept:])


def test_the_best_is_removed_after_a_better_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, bests = Runner.save_checkpoint, []

    def watched(self: Runner, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        bests.append(len(list(tmp_path.glob('best_*.pth'))))
        save(self, out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(Runner, 'save_checkpoint', watched)
    scores = iter([10.0, 20.0, 15.0, 30.0])
    monkeypatch.setattr('mmengine.evaluator.Evaluator.evaluate', lambda *_: {'accuracy/top1': next(scores)})
    train(tmp_path, max_epochs=4)
    assert [path.name for path in tmp_path.glob('best_*.pth')] == ['best_accuracy_top1_epoch_4.pth']
    assert min(bests[2:]) == 1


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EROFS])
def test_a_checkpoint_that_cannot_be_written(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(error, 'No space left')

    monkeypatch.setattr('mmengine.fileio.backends.LocalBackend.put', fail)
    with pytest.raises(SetupError, match=r'epoch_1\.pth cannot be written \(No space left\)') as caught:
        run(MODEL, tmp_path, **TWO)
    assert '\n' not in str(caught.value)


def test_checkpoints_within_epochs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r'interval=2.*by_epoch=True'):
        run(MODEL, tmp_path, **TWO, **_checkpoint(by_epoch=False, interval=2))
    assert not list(tmp_path.glob('*.pth'))


def test_checkpoints_by_iterations_resume_exactly(tmp_path: Path) -> None:
    loop = dict(type='IterBasedTrainLoop', max_iters=8)
    assert_resumes_exactly(MODEL, tmp_path, 5, train_cfg=loop, **_checkpoint(by_epoch=False, interval=2))


@pytest.mark.parametrize(('counts', 'warned'), [(2, False), (3, True)])
def test_accumulation_across_checkpoints_is_logged(
    counts: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr('fnkd_plugin.mm.hooks.safe_checkpoint_hook.print_log', lambda text, *_: logged.append(text))
    wrapper = dict(optimizer=dict(type='SGD', lr=0.05), accumulative_counts=counts)
    run(MODEL, tmp_path, optim_wrapper=wrapper, **TWO)
    assert any(f'accumulative_counts={counts}' in text and '4 iterations' in text for text in logged) == warned


def test_a_resumed_file_removes_nothing_elsewhere(tmp_path: Path) -> None:
    train(tmp_path / 'run')
    own = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)
    hub = ('message_hub', 'runtime_info')
    assert Path(own['message_hub']['runtime_info']['best_ckpt']).parent == tmp_path / 'run'
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'thesis.pth').write_text('mine')
    for path in (other, other / 'thesis.pth', '../other/thesis.pth', f'{tmp_path}/run/../other/thesis.pth'):
        shutil.rmtree(tmp_path / 'new', ignore_errors=True)
        content = replaced(replaced(own, *hub, 'best_ckpt', value=str(path)), *hub, 'best_score', value=-1.0)
        torch.save(replaced(content, *hub, 'keep_ckpt_ids', value=['../../other/thesis']), tmp_path / 'x.pth')
        train(tmp_path / 'new', load_from=str(tmp_path / 'x.pth'), resume=True, max_epochs=2)
        assert (other / 'thesis.pth').read_text() == 'mine'


def test_a_resumed_run_removes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([10.0, 20.0])
    monkeypatch.setattr('mmengine.evaluator.Evaluator.evaluate', lambda *_: {'accuracy/top1': next(scores)})
    train(tmp_path)
    train(tmp_path, resume=True, max_epochs=2)
    assert [path.name for path in tmp_path.glob('best_*.pth')] == ['best_accuracy_top1_epoch_2.pth']


@pytest.mark.parametrize(
    ('keys', 'value'),
    [
        (('meta', 'epoch'), '1'),
        (('meta', 'iter'), -1),
        (('meta', 'seed'), 2**70),
        (('message_hub', 'runtime_info', 'best_score'), 'x'),
        (('optimizer', 'param_groups'), []),
        (('param_schedulers',), [dict(last_step='x')]),
    ],
)
def test_what_cannot_be_resumed_is_named(keys: tuple, value: Any, tmp_path: Path) -> None:
    train(tmp_path)
    torch.save(replaced(torch.load(tmp_path / 'epoch_1.pth'), *keys, value=value), tmp_path / 'x.pth')
    with pytest.raises(SetupError, match=rf'x\.pth cannot be resumed.*{keys[-1]}'):
        train(tmp_path, load_from=str(tmp_path / 'x.pth'), resume=True, max_epochs=2)


def test_resuming_from_weights_alone_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    torch.save(torch.load(tmp_path / 'epoch_1.pth')['state_dict'], tmp_path / 'x.pth')
    with pytest.raises(SetupError, match=r'x\.pth cannot be resumed: it holds weights only'):
        train(tmp_path, load_from=str(tmp_path / 'x.pth'), resume=True, max_epochs=2)


def test_stock_schedules_and_averages_resume(tmp_path: Path) -> None:
    off = {**VALIDATION['default_hooks'], 'safe_checkpoint': None}
    options = {**VALIDATION, 'default_hooks': off}
    run(MODEL, tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1), **options)
    resumed = run(MODEL, tmp_path, resume=True, **TWO, **VALIDATION)
    assert len(resumed.message_hub.log_scalars['train/loss'].data[0]) == 8
    assert resumed.param_schedulers[0].milestones == {1: 1, 2: 1}
    assert resumed.optim_wrapper.get_lr()['lr'] == [pytest.approx(0.05 * 0.1**2)]
