"""Summary tables in the log before and after training."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmpretrain.registry import DATASETS, HOOKS
from torch import nn

from fnkd_plugin.mm.config import is_distilled, plain_model, type_name
from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.mm.hooks.evaluate_teacher_hook import EvaluateTeacherHook
from fnkd_plugin.mm.labels import class_names
from fnkd_plugin.mm.tasks import unwrapped

Rows = list[tuple[str, str]]

SHOWN = dict(shown=True)
"""``extra`` of log records that the terminal shows even if MMEngine logs to a file only."""


@HOOKS.register_module()
class SummaryHook(Hook):
    """Logs two tables: data, student, teacher and method before training; accuracies and files after it."""

    # After EvaluateTeacherHook, the last checkpoint and the last validation.
    priority = 'LOWEST'

    def before_train(self, runner: Any) -> None:
        """Log data, student, teacher, method and work dir."""
        model = unwrapped(runner.model)
        rows = [('training set', _dataset(runner.train_dataloader.dataset))]
        if runner._val_loop is not None:
            rows.append(('validation set', _dataset(runner.val_loop.dataloader.dataset)))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        rows += [
            ('student', f'{_student(runner.cfg, model)}, {parameters:,} parameters'),
            *_method(runner.cfg, runner.max_epochs),
        ]
        if isinstance(model, Distiller):
            accuracy = _teacher_result(runner) or 'not evaluated (--evaluate-teacher)'
            rows.insert(-1, ('teacher', f'{model.distillation.teacher.name}: {accuracy}'))
        rows.append(('checkpoints', str(runner.work_dir)))
        runner.logger.info(as_text('Training', rows), extra=SHOWN)

    def after_train(self, runner: Any) -> None:
        """Log accuracies and the path of the checkpoint."""
        rows = list(_accuracies(runner))
        if result := _teacher_result(runner):
            rows.append(('teacher', result))
        pointer = Path(runner.work_dir) / 'last_checkpoint'
        checkpoint = pointer.read_text().strip() if pointer.is_file() else ''
        if checkpoint:
            name = Path(runner.cfg.filename or 'config.py').name
            config = Path(runner.work_dir) / (f'plain_{name}' if is_distilled(runner.cfg) else name)
            rows.append(('checkpoint', checkpoint))
            if runner.cfg.get('test_dataloader') and config.is_file():
                rows.append(('next', f'python -m fnkd_plugin test {config} {checkpoint}'))
        runner.logger.info(as_text('Trained', rows), extra=SHOWN)


def as_text(title: str, rows: Rows) -> str:
    """A table of two columns as plain text, for terminal and log file."""
    width = max((len(name) for name, _ in rows), default=0)
    return '\n'.join([title, *(f'  {name:<{width}}   {value}' for name, value in rows)])


def _dataset(dataset: Any) -> str:
    names = class_names(dataset)
    classes = f'{len(names):,} classes, ' if names else ''
    # ReproducibleHook may have changed the object's class.
    kinds = [kind.__name__ for kind in type(dataset).__mro__]
    name = next((name for name in kinds if name in DATASETS.module_dict), kinds[0])
    return f'{name}: {classes}{len(dataset):,} images'


def _student(cfg: Any, model: nn.Module) -> str:
    config = plain_model(cfg) if cfg.get('model') else {}
    if isinstance(name := config.get('model', config.get('model_name')), str):
        return f'{type_name(config)}({name})'
    parts = [type_name(config.get(part)) for part in ('backbone', 'head')]
    depth = (config.get('backbone') or {}).get('depth')
    return ' + '.join(filter(None, parts)) + (f' of depth {depth}' if depth else '') or type(model).__name__


def _method(cfg: Any, epochs: int) -> Rows:
    model = plain_model(cfg) if cfg.get('model') else {}
    loss = model.get('loss') or (model.get('head') or {}).get('loss')
    hard = _call(loss) if loss else 'the default loss'
    if not is_distilled(cfg):
        return [('method', hard)]
    head = cfg.model.head
    soft = head.soft_loss if isinstance(head.soft_loss, (list, tuple)) else [head.soft_loss]
    parts = [f'{head.get("hard_weight", 1):g} × {hard}', *map(_call, soft)]
    return [('method', ' + '.join(parts) + _warmup(head.get('warmup', 0), epochs))]


def _warmup(share: float, epochs: int) -> str:
    if not share:
        return ''
    return f', warm-up {share:.0%}' + (f' (no effect in {epochs} epochs)' if epochs > 1 and share * epochs <= 1 else '')


def _call(config: Any) -> str:
    options = [f'{k}={v if len(str(v)) <= 40 else "..."}' for k, v in config.items() if k not in ('type', '_scope_')]
    return f'{type_name(config)}({", ".join(options)})'


def _teacher_result(runner: Any) -> str:
    return next((hook.result for hook in runner.hooks if isinstance(hook, EvaluateTeacherHook)), '')


def _accuracies(runner: Any) -> Iterator[tuple[str, str]]:
    """Last and best value of each validation metric, including epochs before a resumption."""
    for key, history in runner.message_hub.log_scalars.items():
        scalar = key.startswith('val/') and not key.startswith(('val/time', 'val/data_time'))
        values = [float(value) for value in history.data[0]] if scalar else []
        if values and all(map(math.isfinite, values)):
            name = key.removeprefix('val/')
            best = f', best {max(values):.4g}' if 'loss' not in name and len(values) > 1 else ''
            yield name, f'{values[-1]:.4g}{best}'
