"""Logging, teacher checks and checkpoint state of a distilled run."""

import functools
from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import FlexibleRunner, Runner

from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.mm.step import Step, first_broken, means
from fnkd_plugin.mm.tasks import unwrapped

SOFT_LOSSES = 'fnkd_soft_losses'
"""Key of the soft losses' state in a checkpoint's ``message_hub['runtime_info']``."""


class DistillationHook(Hook):
    """Added to every Runner of a :class:`Distiller`; synchronises with the device only to log or to store.

    When ``LoggerHook`` logs, and at the end of an epoch, it logs means over the iterations since the last time and
    checks that the teacher's logits were finite in them. It also checks before a checkpoint is written.

    Raises:
        FloatingPointError: If the teacher's logits were non-finite.
        RuntimeError: If the student trains without calling ``forward(mode='loss')``, so that the teacher is not used.
    """

    # Before LoggerHook, after the losses are in the message hub.
    priority = 'NORMAL'

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._first = 0  # iteration of the first step, counted from 1

    def before_train(self, runner: Any) -> None:
        """Restore the soft losses of a resumed run from the message hub."""
        stored = runner.message_hub.runtime_info.pop(SOFT_LOSSES, None)
        model = _distiller(runner)
        if model is not None and stored is not None:
            model.distillation.head.restore(stored)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Check the teacher, and store the soft losses."""
        model = _distiller(runner)
        if model is not None:
            self._check(model)
            checkpoint['message_hub']['runtime_info'][SOFT_LOSSES] = model.distillation.head.state()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Keep this step for the log, and log if it is due."""
        model = _distiller(runner)
        if model is None or not model.distillation.head.active:
            return
        step, model.distillation.step = model.distillation.step, None
        if step is None:
            raise RuntimeError(
                f"Distiller: {type(model).__name__} trains without calling forward(mode='loss'), so that its "
                "teacher is not used. Call it in the student's train_step."
            )
        if runner.cfg.get('compile'):  # a graph may write to the same memory again
            step = step.clone()
        if not self._steps:
            self._first = runner.iter + 1
        self._steps.append(step)
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        if any(self.every_n_inner_iters(batch_idx, n) for n in intervals or [10]) or self.end_of_epoch(
            runner.train_dataloader, batch_idx
        ):
            self._check(model)
            for name, value in {**means(self._steps), **model.distillation.head.log_vars()}.items():
                runner.message_hub.update_scalar(f'train/{name}', value)
            self._steps.clear()

    def _check(self, model: Distiller) -> None:
        broken = first_broken(self._steps)
        if broken is not None:
            first, last = self._first, self._first + len(self._steps) - 1
            raise FloatingPointError(
                f'{model.distillation.teacher.name}: non-finite logits in iteration {first + broken}; '
                f'iterations {first} to {last} were checked. Check the weights of the teacher and the images.'
            )


def _distiller(runner: Any) -> Distiller | None:
    model = unwrapped(runner.model)
    return model if isinstance(model, Distiller) else None


def add_to_runners() -> None:
    """Make MMEngine's Runners add :class:`DistillationHook` if their model is a Distiller."""
    for kind in (Runner, FlexibleRunner):
        kind.register_hooks = _adding(kind.register_hooks)


def _adding(register_hooks: Any) -> Any:
    @functools.wraps(register_hooks)
    def register(runner: Any, *args: Any, **kwargs: Any) -> None:
        register_hooks(runner, *args, **kwargs)
        model = runner.model
        if isinstance(model, dict):  # FlexibleRunner builds it later
            distils = model.get('type') in ('Distiller', 'mmpretrain.Distiller', Distiller)
        else:
            distils = _distiller(runner) is not None
        if distils:
            runner.register_hook(DistillationHook())

    return register
