"""Checkpoints as plain data, written atomically."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from mmpretrain.registry import HOOKS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.checkpoints import check_resumable, to_plain

_STEP = re.compile(r'(epoch|iter)_\d+')


@HOOKS.register_module()
class SafeCheckpointHook(Hook):
    """Stores checkpoints as plain data, writes them atomically, and checks the one that a run resumes from.

    The checkpoints load with ``torch.load(weights_only=True)``, as timm and upstream MMPretrain on torch >= 2.6 do;
    resuming restores the training logs. Put the hook into ``default_hooks``, whose entries merge.

    The run's ``CheckpointHook`` removes older checkpoints last, and ``import fnkd_plugin`` makes MMEngine write files
    under a temporary name first. If ``last_checkpoint`` names no file, a run resumes from the newest checkpoint.

    Raises:
        SetupError: Before training, if checkpoints are written within epochs, which cannot be resumed exactly, or if
            the checkpoint to resume from does not match the run; later, if a checkpoint cannot be written.
    """

    # After EMAHook and other hooks that add to the checkpoint.
    priority = 'LOWEST'

    def before_run(self, runner: Any) -> None:
        """Prepare the ``CheckpointHook``, and find the checkpoint to resume from."""
        for hook in runner.hooks:
            if type(hook) is CheckpointHook:
                hook.__class__ = _RemovesLast
            if isinstance(hook, CheckpointHook) and isinstance(runner._train_loop, BaseLoop):
                _check_interval(hook, runner._train_loop, runner.optim_wrapper)
        if runner._resume and runner._load_from is None:
            runner._load_from = _newest(Path(runner.work_dir, 'last_checkpoint'), _folder(runner))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Check the checkpoint that a run resumes from; MMEngine loads it afterwards."""
        if runner._resume:
            check_resumable(checkpoint, runner._load_from, _folder(runner))
            _try_to_load(runner, checkpoint)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Convert everything but the weights to plain data."""
        for key in [k for k in checkpoint if not k.endswith('state_dict')]:
            checkpoint[key] = to_plain(checkpoint[key])


class _RemovesLast(CheckpointHook):
    """MMEngine's hook, but it removes older checkpoints after it has written the new one."""

    file_backend: Any

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        with self._removing_last(self.filename_tmpl.format(step)):
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        with self._removing_last('best'):
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_last(self, name: str) -> Iterator[None]:
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            yield
        except OSError as error:
            target = Path(self.out_dir, name)
            raise SetupError(f'Checkpoint {target} cannot be written ({error.strerror or error}).') from error
        finally:
            self.file_backend = backend
        bests = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in set(later.paths) - bests - {self.last_ckpt}:
            (backend.rmtree if backend.isdir(path) else backend.remove)(path)  # DeepSpeed's are folders


class _RemoveLater:
    """A file backend that lists what it is to remove."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove


@register_backend('local', prefixes='', force=True)
class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, which writes under a temporary name first."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; a file of that name is replaced when all are written."""
        partial = f'{filepath}.partial'
        super().put(obj, partial)
        os.replace(partial, filepath)


def _try_to_load(runner: Any, checkpoint: dict) -> None:
    """Load the states of optimizer and schedules.

    Raises:
        SetupError: If they are those of another optimizer or schedule.
    """
    stored = checkpoint.get('param_schedulers')
    try:
        if isinstance(runner.optim_wrapper, OptimWrapper) and 'optimizer' in checkpoint:
            runner.optim_wrapper.load_state_dict(checkpoint['optimizer'])
        if isinstance(runner.param_schedulers, list) and stored is not None:
            fits = [
                s.state_dict().keys() == state.keys() for s, state in zip(runner.param_schedulers, stored, strict=True)
            ]
            if not all(fits):
                raise ValueError('param_schedulers are of other types')
    except Exception as error:  # of any type
        raise SetupError(
            f"{runner._load_from} cannot be resumed: its optimizer or param_schedulers are not the run's "
            f'({" ".join(str(error).split()):.200}).'
        ) from error


def _folder(runner: Any) -> Path:
    """The folder of the run's ``CheckpointHook``, which sets its own only when training starts."""
    work_dir = Path(runner.work_dir)
    out = next((hook.out_dir for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    return work_dir if out is None or Path(out).name == work_dir.name else Path(out, work_dir.name)


def _newest(pointer: Path, folder: Path) -> str | None:
    """The checkpoint named in ``last_checkpoint``; if there is none, the newest in ``folder``."""
    named = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if os.path.exists(named):
        return named
    found = {int(path.stem.partition('_')[2]): path for path in folder.glob('*.pth') if _STEP.fullmatch(path.stem)}
    if not found:
        return named or None
    newest = str(found[max(found)])
    print_log(f'last_checkpoint names {named or "no file"}; using {newest}.', 'current')
    return newest


def _check_interval(hook: CheckpointHook, loop: Any, optim_wrapper: Any) -> None:
    if hook.interval <= 0:
        return
    if not hook.by_epoch and isinstance(loop, EpochBasedTrainLoop):
        raise SetupError(
            f'CheckpointHook(by_epoch=False, interval={hook.interval}): an epoch-based run cannot be resumed exactly '
            'within an epoch; set by_epoch=True, or train by iterations (train_cfg.by_epoch=False).'
        )
    counts = getattr(optim_wrapper, '_accumulative_counts', 1)
    iterations = hook.interval * (len(loop.dataloader) if hook.by_epoch else 1)
    if iterations % counts:
        print_log(
            f'accumulative_counts={counts} does not divide the {iterations} iterations between checkpoints; a resumed '
            'run loses the gradients accumulated since the last step, and differs from an uninterrupted one.',
            'current',
        )
