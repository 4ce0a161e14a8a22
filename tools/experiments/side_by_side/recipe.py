"""The supported settings of a training's config; unsupported ones raise an error that names them."""

from dataclasses import dataclass
from typing import Any

from mmengine.config import ConfigDict

from experiments.job import Job
from fnkd_plugin.cli.train import parse_args, read_config
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import is_distilled, plain_model

AUGMENTATION = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
PADDING = 4


@dataclass(frozen=True)
class Recipe:
    """The settings that all students of a group share.

    Attributes:
        train: The config of the training set.
        test: The config of the test set.
        mean: The mean of each channel, in the unit of the pixels.
        std: The standard deviation of each channel, in the unit of the pixels.
        lr: The learning rate of the first epoch.
        milestones: The epochs, counted from 0, at which it is multiplied by ``gamma``.
    """

    train: ConfigDict
    test: ConfigDict
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    milestones: tuple[int, ...]
    gamma: float

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * self.gamma ** sum(epoch >= m for m in self.milestones)


@dataclass(frozen=True)
class Student:
    """The plain classifier of a job, and its distillation head, if any."""

    job: Job
    model: ConfigDict
    head: ConfigDict | None


def read(job: Job) -> tuple[Recipe, Student]:
    """Recipe and student of a job.

    Raises:
        SetupError: If its config has an unsupported setting.
    """
    cfg = read_config(parse_args(job.arguments()))
    model = plain_model(cfg)
    pixels = dict(model.pop('data_preprocessor'))
    head = cfg.model.head if is_distilled(cfg) else None
    optimizer, schedule, loader = dict(cfg.optim_wrapper.optimizer), dict(cfg.param_scheduler), cfg.train_dataloader
    pixels.pop('num_classes', None)
    _only(job, 'optim_wrapper', cfg.optim_wrapper, optimizer=optimizer)
    _only(job, 'optimizer', optimizer, type='SGD', lr=None, momentum=None, weight_decay=None)
    _only(job, 'param_scheduler', schedule, type='MultiStepLR', by_epoch=True, milestones=None, gamma=None)
    _only(job, 'train_cfg', cfg.train_cfg, by_epoch=True, max_epochs=None, val_interval=None)
    _only(job, 'data_preprocessor', pixels, mean=None, std=None, to_rgb=False)
    _only(job, 'train_pipeline', dict(enumerate(loader.dataset.pipeline)), **_numbered(AUGMENTATION))
    _only(job, 'test_pipeline', dict(enumerate(cfg.test_dataloader.dataset.pipeline)), **_numbered(AUGMENTATION[2:]))
    _only(job, 'sampler', loader.sampler, type='DefaultSampler', shuffle=True)
    _only(job, 'train_dataloader', loader, batch_size=None, num_workers=None, dataset=None, sampler=None)
    _only(job, 'config', {key: cfg[key] for key in ('custom_hooks', 'train_pipeline_switch') if cfg.get(key)})
    if head is not None:
        _only(job, 'head', head, type='DistillHead', soft_loss=None, hard_weight=None, warmup=None)
        parts = {key: value for key, value in cfg.model.items() if key != 'data_preprocessor'}
        _only(job, 'model', parts, type='Distiller', student=None, teacher=None, head=None)
    recipe = Recipe(
        train=loader.dataset,
        test=cfg.test_dataloader.dataset,
        mean=tuple(pixels['mean']),
        std=tuple(pixels['std']),
        batch_size=loader.batch_size,
        epochs=cfg.train_cfg.max_epochs,
        lr=optimizer['lr'],
        momentum=optimizer.get('momentum', 0.0),
        weight_decay=optimizer.get('weight_decay', 0.0),
        milestones=tuple(schedule['milestones']),
        gamma=schedule.get('gamma', 0.1),
    )
    return recipe, Student(job, model, head)


def _numbered(items: list[dict]) -> dict[str, dict]:
    return {str(i): item for i, item in enumerate(items)}


def _only(job: Job, part: str, found: Any, **known: Any) -> None:
    """Raise for unknown keys, and for values other than the known one unless that is None."""
    for key, value in found.items():
        name = str(key)
        if name not in known or (known[name] is not None and value != known[name]):
            raise SetupError(
                f'{job.config.name}: {part} has {key}={value!r}, which is not supported with --device; '
                'without it, the Runner trains this config.'
            )
