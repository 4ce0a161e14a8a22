"""Checkpoints as plain data, written atomically."""

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.checkpoints import check_resumable, read_checkpoint, to_plain


@HOOKS.register_module()
class SafeCheckpointHook(Hook):
    """Stores checkpoints as plain data, writes them atomically, and checks the one that a run resumes from.

    The checkpoints load with ``torch.load(weights_only=True)``, as timm and upstream MMPretrain on torch >= 2.6 do;
    resuming restores the training logs. Put the hook into ``default_hooks``, whose entries merge.

    The run's ``CheckpointHook`` writes each file, and ``last_checkpoint``, under a temporary name first, and removes
    older ones last. If ``last_checkpoint`` does not name a complete checkpoint, a run resumes from the newest one.

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
                hook.__class__ = _AtomicCheckpointHook
            if isinstance(hook, CheckpointHook) and isinstance(runner._train_loop, BaseLoop):
                _check_interval(hook, runner._train_loop, runner.optim_wrapper)
        if runner._resume and runner._load_from is None:
            runner._load_from = _newest(Path(runner.work_dir, 'last_checkpoint'), _folder(runner))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Check the checkpoint that a run resumes from."""
        if runner._resume:
            own: dict[str, Any] = {}
            shapes = []
            if isinstance(runner.optim_wrapper, OptimWrapper):
                own['optimizer'] = runner.optim_wrapper.state_dict()
                groups = runner.optim_wrapper.optimizer.param_groups
                shapes = [parameter.shape for group in groups for parameter in group['params']]
            if isinstance(runner.param_schedulers, list):
                own['param_schedulers'] = [scheduler.state_dict() for scheduler in runner.param_schedulers]
            check_resumable(checkpoint, runner._load_from, own, shapes, _folder(runner))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Convert everything but the weights to plain data."""
        for key in [k for k in checkpoint if not k.endswith('state_dict')]:
            checkpoint[key] = to_plain(checkpoint[key])


class _AtomicCheckpointHook(CheckpointHook):
    """MMEngine's hook, which writes files atomically and removes old ones after writing the new one."""

    file_backend: Any
    keep_ckpt_ids: deque

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        if self.max_keep_ckpts > 0 and step not in kept:
            kept.append(step)
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        # FlexibleRunner writes folders from all processes.
        partial = f'.{name}' if isinstance(runner, Runner) and '://' not in str(self.out_dir) else name
        with _writing(self.last_ckpt):
            runner.save_checkpoint(
                self.out_dir,
                partial,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if not is_main_process():
                return
            if partial != name:
                os.replace(Path(self.out_dir, partial), self.last_ckpt)
            pointer = Path(runner.work_dir, 'last_checkpoint')
            pointer.with_suffix('.partial').write_text(self.last_ckpt)
            pointer.with_suffix('.partial').replace(pointer)
        for old in kept[: -self.max_keep_ckpts]:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        backend, self.file_backend = self.file_backend, _RemoveLater(self.file_backend)
        later = self.file_backend
        try:
            with _writing(self.out_dir):
                super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in set(later.paths) - best:
            self._remove(path)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed
            self.file_backend.rmtree(path)


class _RemoveLater:
    """A file backend that defers removal: MMEngine removes the old best checkpoint before it writes the new one."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove


@contextmanager
def _writing(path: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(f'Checkpoint {path} cannot be written ({error.strerror or error}).') from error


def _folder(runner: Any) -> Path:
    """The folder of the run's ``CheckpointHook``, which sets its own only when training starts."""
    work_dir = Path(runner.work_dir)
    out = next((hook.out_dir for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    return work_dir if out is None or Path(out).name == work_dir.name else Path(out, work_dir.name)


def _newest(pointer: Path, folder: Path) -> str | None:
    """The checkpoint named in ``last_checkpoint`` if it is complete, else the newest complete one."""
    named = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    others = [path for path in folder.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+', path.stem)]
    others.sort(key=lambda path: int(path.stem.partition('_')[2]), reverse=True)
    for path in [named, *map(str, others)]:
        try:
            if path and 'message_hub' in read_checkpoint(path):
                if path != named:
                    print_log(
                        f'last_checkpoint names {named or "no file"}, not a complete checkpoint; using {path}.',
                        'current',
                    )
                return path
        except SetupError as error:
            print_log(str(error), 'current')
    return named or None


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
