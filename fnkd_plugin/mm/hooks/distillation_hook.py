"""Log, teacher check and checkpoint state of a distilled run."""

import functools
import math
from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import FlexibleRunner, Runner

from fnkd_plugin.mm.channels_last import has_channels_last_weights
from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.mm.tasks import unwrapped

SOFT_LOSSES = 'fnkd_soft_losses'
"""Key of the soft losses' state in a checkpoint's ``message_hub['runtime_info']``."""


class DistillationHook(Hook):
    """Added to every Runner of a :class:`Distiller`; synchronises with the device only to log or to store.

    Statistics are those of one batch: of each iteration in which ``LoggerHook`` logs, and of the last one of an epoch.
    The teacher's logits are checked in the same iterations, in each whose loss is non-finite (``RuntimeInfoHook`` has
    read it anyway), and before a checkpoint is written. A loss is non-finite if one of the teacher's logits is NaN or
    +inf, so no iteration with such logits gets into a checkpoint.

    Raises:
        FloatingPointError: If the teacher's logits are non-finite.
        RuntimeError: If the student trains without calling ``forward(mode='loss')``, so that the teacher is not used.
    """

    # Before LoggerHook, after the losses are in the message hub.
    priority = 'NORMAL'

    def __init__(self) -> None:
        self._iteration = 0  # of the last step, counted from 1

    def before_train(self, runner: Any) -> None:
        """Restore the soft losses of a resumed run from the message hub, and note the order of the weights."""
        stored = runner.message_hub.runtime_info.pop(SOFT_LOSSES, None)
        model = _distiller(runner)
        if model is None:
            return
        if stored is not None:
            model.distillation.head.restore(stored)
        model.distillation.channels_last = has_channels_last_weights(model)  # ChannelsLastHook has converted them

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Check the last step, and store the soft losses."""
        model = _distiller(runner)
        if model is not None:
            self._check(model)
            checkpoint['message_hub']['runtime_info'][SOFT_LOSSES] = model.distillation.head.state()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Free the tensors of the last step."""
        model = _distiller(runner)
        if model is not None:
            model.distillation.step = None

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Check this step, and log it if it is due."""
        model = _distiller(runner)
        if model is None or not model.distillation.head.active:
            return
        step = model.distillation.step
        if step is None:
            raise RuntimeError(
                f"Distiller: {type(model).__name__} trains without calling forward(mode='loss'), so that its "
                "teacher is not used. Call it in the student's train_step."
            )
        self._iteration = runner.iter + 1
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        logged = self.end_of_epoch(runner.train_dataloader, batch_idx) or any(
            self.every_n_inner_iters(batch_idx, n) for n in intervals or [10]
        )
        if logged or not _loss_is_finite(runner):
            self._check(model)
        if logged:
            for name, value in {**step.statistics(), **model.distillation.head.log_vars()}.items():
                runner.message_hub.update_scalar(f'train/{name}', value)

    def _check(self, model: Distiller) -> None:
        step = model.distillation.step
        if step is not None and not step.teacher_is_finite():
            raise FloatingPointError(
                f'{model.distillation.teacher.name}: non-finite logits in iteration {self._iteration}. Check the '
                'weights of the teacher and the images.'
            )


def _loss_is_finite(runner: Any) -> bool:
    """Whether the logged loss is; False if the student's ``train_step`` returns none."""
    loss = runner.message_hub.log_scalars.get('train/loss')
    return loss is not None and math.isfinite(loss.current())


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
