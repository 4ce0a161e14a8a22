"""The fine-tuning recipe of ``fnkd train FOLDER``: photos and a timm model to an MMPretrain config."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.config import Config

from fnkd_plugin.cli.bundle import Bundle
from fnkd_plugin.cli.photos import Photos
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.distill_config import distill, smooth_labels

LEARNING_RATES = (0.003, 0.01, 0.03)
"""Of SGD at a batch of 32; the classifier learns ten times as fast as the pretrained layers."""
SEED, TEACHER_SEED = 0, 1000
_SAMPLES, _EPOCHS = 12_000, (10, 60)


@dataclass(frozen=True)
class Recipe:
    """The settings that all trainings of a folder share.

    Attributes:
        photos: The photos.
        lists: Their annotation files, by ``'train'``, ``'val'`` and ``'classes'``.
        image_size: Pixels a side.
        epochs: Of each training.
        batch_size: Images of a step.
        workers: Processes that load images.
        amp: Whether to train in mixed precision, which needs a GPU.
    """

    photos: Photos
    lists: dict[str, Path]
    image_size: int
    epochs: int
    batch_size: int
    workers: int
    amp: bool

    def config(self, model: str, checkpoint: str | None, learning_rate: float, seed: int = SEED) -> Config:
        """A plain config that fine-tunes a timm model.

        Args:
            model: timm's name.
            checkpoint: Weights to start from; None for timm's published ones.
            learning_rate: Of the pretrained layers, at a batch of 32.
            seed: Of everything random.
        """
        mean, std = _normalisation(model)
        classes = len(self.photos.classes)
        start = dict(checkpoint=checkpoint) if checkpoint else dict(pretrained=True)
        student = dict(type='TimmStudent', model=model, num_classes=classes, channels_last=True, **start)
        return Config(
            dict(
                default_scope='mmpretrain',
                custom_imports=dict(imports=['fnkd_plugin'], allow_failed_imports=False),
                model=student,
                data_preprocessor=dict(
                    mean=[255 * m for m in mean],
                    std=[255 * s for s in std],
                    to_rgb=True,
                    num_classes=classes,
                ),
                train_dataloader=self._loader('train', _train_pipeline(self.image_size), shuffle=True),
                val_dataloader=self._loader('val', _val_pipeline(self.image_size), shuffle=False),
                val_evaluator=dict(type='Accuracy', topk=(1,)),
                val_cfg=dict(),
                train_cfg=dict(by_epoch=True, max_epochs=self.epochs, val_interval=max(1, self.epochs // 10)),
                optim_wrapper=self._optimizer(model, learning_rate),
                param_scheduler=_schedule(self.epochs * self._steps),
                default_hooks=dict(
                    logger=dict(type='LoggerHook', interval=20),
                    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto'),
                    reproducible=dict(type='ReproducibleHook'),
                    safe_checkpoint=dict(type='SafeCheckpointHook'),
                ),
                randomness=dict(seed=seed),
            )
        )

    def _loader(self, part: str, pipeline: list[dict[str, Any]], shuffle: bool) -> dict[str, Any]:
        dataset = dict(
            type='CustomDataset',
            data_root=str(self.photos.root),
            ann_file=str(self.lists[part].absolute()),
            classes=self.photos.classes,
            pipeline=pipeline,
        )
        return dict(
            batch_size=self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            # A batch of one image has no statistics for batch norm.
            drop_last=shuffle,
        )

    @property
    def _steps(self) -> int:
        return len(self.photos.train) // self.batch_size

    def bundle(self, model: str) -> Bundle:
        """What one must know to use a model that was trained so."""
        return Bundle(model, self.photos.classes, self.image_size, *_normalisation(model))

    def _optimizer(self, model: str, learning_rate: float) -> dict[str, Any]:
        found = timm.models.get_pretrained_cfg(model)
        classifier = found.classifier if found else None
        names = [classifier] if isinstance(classifier, str) else list(classifier or [])
        sgd = dict(type='SGD', lr=learning_rate * self.batch_size / 32, momentum=0.9, weight_decay=1e-4)
        wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic') if self.amp else dict(type='OptimWrapper')
        keys = {f'model.{name}': dict(lr_mult=10) for name in names}
        return dict(**wrapper, optimizer=sgd, paramwise_cfg=dict(custom_keys=keys), clip_grad=dict(max_norm=5.0))


def recipe_for(
    photos: Photos, lists: dict[str, Path], image_size: int | None, epochs: int | None, model: str
) -> Recipe:
    """A recipe that fits the photos and this machine.

    About 12,000 images are seen, in 10 to 60 epochs (our choice). The image size is the model's own on a GPU, and at
    most 128 pixels on a CPU.
    """
    gpu = torch.cuda.is_available()
    found = timm.models.get_pretrained_cfg(model)
    own = found.input_size[-1] if found else 224
    least, most = _EPOCHS
    return Recipe(
        photos,
        lists,
        image_size or (own if gpu else min(own, 128)),
        epochs or min(most, max(least, round(_SAMPLES / len(photos.train)))),
        min(64 if gpu else 32, max(2, len(photos.train) // 8)),
        min(4, os.cpu_count() or 1) if gpu else 1,
        gpu,
    )


def _normalisation(model: str) -> tuple[list[float], list[float]]:
    found = timm.models.get_pretrained_cfg(model)
    return (list(found.mean), list(found.std)) if found else ([0.5] * 3, [0.5] * 3)


def with_method(cfg: Config, method: str, teacher: dict[str, Any]) -> Config:
    """A plain config trained by a method: ``plain``, a label smoothing, or a distillation method."""
    if method == 'plain':
        return cfg
    if method == 'lsr':
        return smooth_labels(cfg, method=method)
    if method == 'alsr':
        raise SetupError('alsr needs groups of classes: write a config and use --label-smoothing-cfg groups=FILE.')
    return distill(cfg, teacher, method)


def _train_pipeline(size: int) -> list[dict[str, Any]]:
    return [
        dict(type='LoadImageFromFile'),
        dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.35, 1.0), interpolation='bicubic'),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs'),
    ]


def _val_pipeline(size: int) -> list[dict[str, Any]]:
    return [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=round(size * 8 / 7), edge='short', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=size),
        dict(type='PackInputs'),
    ]


def _schedule(steps: int) -> list[dict[str, Any]]:
    warmup = max(1, steps // 10)
    return [
        dict(type='LinearLR', start_factor=0.05, begin=0, end=warmup, by_epoch=False),
        dict(type='CosineAnnealingLR', T_max=steps - warmup, begin=warmup, end=steps, by_epoch=False),
    ]
