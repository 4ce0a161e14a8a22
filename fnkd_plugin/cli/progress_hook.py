"""One line of progress for a training or a test."""

import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from fnkd_plugin.cli.terminal import Bar, console
from fnkd_plugin.mm.hooks.summary_hook import as_text


class ProgressHook(Hook):
    """Shows epoch, loss, accuracy and the time left.

    The loss, a mean of ten iterations, is read from the device twice a second at most.

    Args:
        title: The title of the bar.
    """

    priority = 'VERY_LOW'

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: Bar | None = None
        self._shown, self._when = 0, 0.0

    def before_train(self, runner: Any) -> None:
        """Open the bar."""
        for loop in (runner._train_loop, runner._val_loop):
            _quiet_workers(runner, getattr(loop, 'dataloader', None))
        if is_main_process():
            self._bar = Bar(self.title, runner.max_iters, runner.iter)
            self._shown = runner.iter

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance the bar."""
        done = runner.iter + 1
        if self._bar is not None and (time.monotonic() - self._when >= 0.5 or done == runner.max_iters):
            self._advance(runner, done)

    def after_train(self, runner: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar, if it is there; also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _advance(self, runner: Any, done: int) -> None:
        assert self._bar is not None
        scalars = runner.message_hub.log_scalars
        epochs = runner.max_epochs  # 1 where iterations count
        parts = [f'epoch {min(runner.epoch + 1, epochs)}/{epochs}'] if epochs > 1 else []
        if 'train/loss' in scalars:
            parts.append(f'loss {scalars["train/loss"].mean(10):.3f}')
        for name, scalar in scalars.items():
            if name.startswith('val/accuracy'):
                parts.append(f'val {scalar.current():.1f} %')
                break
        self._bar.advance(done - self._shown, '  '.join(parts))
        self._shown, self._when = done, time.monotonic()


class TestProgressHook(Hook):
    """Shows how many batches are tested, then the metrics and where the log is."""

    def before_test(self, runner: Any) -> None:
        """Open the bar."""
        _quiet_workers(runner, runner.test_dataloader)
        self._bar = Bar('testing', len(runner.test_dataloader)) if is_main_process() else None

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.advance()

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Remove the bar, and print the metrics."""
        if self._bar is None:
            return
        self._bar.close()
        rows = [
            (name, f'{value:.4g}' if isinstance(value, float) else str(value))
            for name, value in (metrics or {}).items()
        ]
        console.print(as_text('Tested', [*rows, ('log', str(runner.log_dir))]), markup=False)


def _quiet_workers(runner: Any, loader: DataLoader | None) -> None:
    """Let a loader's processes write their standard error, such as libpng's warnings, to the log file."""
    files = [handler.baseFilename for handler in runner.logger.handlers if isinstance(handler, logging.FileHandler)]
    if loader is not None:
        loader.worker_init_fn = functools.partial(_start_worker, [*files, os.devnull][0], loader.worker_init_fn)


def _start_worker(log: str, then: Callable[[int], None] | None, worker: int) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    if then is not None:
        then(worker)
