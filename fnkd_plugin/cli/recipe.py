"""The fine-tuning recipe of ``fnkd train FOLDER``: photos and a timm model to an MMPretrain config."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.config import Config
from timm.models import PretrainedCfg

from fnkd_plugin.cli.bundle import RESIZING, Bundle, val_pipeline
from fnkd_plugin.cli.photos import Photos
from fnkd_plugin.mm.distill_config import distill, smooth_labels

LEARNING_RATES = {True: 1e-3, False: 1e-4}
"""Learning rates of AdamW at a batch of 32, with and without batch normalisation (transformers, mostly)."""
OF_CLASSIFIER = 3
"""How much faster the new classifier learns than the pretrained layers."""
SEED, TEACHER_SEED = 0, 1000
TEACHER_LENGTH = 2 / 3
"""The teacher's iterations as a part of a student's: it starts from better weights, and its steps take the longest."""
_IMAGES, _PASSES, _VALIDATIONS = 8_000, 10, 5
_ENLARGED = 1.5


@dataclass(frozen=True)
class Recipe:
    """The settings that all trainings of a folder share.

    Attributes:
        photos: The photos.
        lists: The folder of their annotation files.
        image_size: Pixels a side.
        iterations: Of a student.
        batch_size: Images of an iteration.
        workers: Processes that load images.
        amp: Whether to train in mixed precision, which needs a GPU.
    """

    photos: Photos
    lists: Path
    image_size: int
    iterations: int
    batch_size: int
    workers: int
    amp: bool

    def config(self, model: str, checkpoint: str | None, seed: int = SEED, enlarged: int | None = None) -> Config:
        """A plain config that fine-tunes a timm model.

        AdamW, whose steps do not depend on the scale of the loss, so that one learning rate serves plain training and
        every method; a warm-up over a tenth of the iterations, then a cosine to zero. The weights of the last iteration
        are kept: none are chosen by the validation photos.

        Args:
            model: timm's name.
            checkpoint: Weights to start from; None for timm's published ones.
            seed: Of everything random.
            enlarged: The size to which the student's images are enlarged for this model, a teacher's
                :meth:`teacher_size`; None for ``image_size``.
        """
        classes = len(self.photos.classes)
        start = dict(checkpoint=checkpoint) if checkpoint else dict(pretrained=True)
        interval = -(-self.iterations // _VALIDATIONS)
        val = self._loader('val', [*val_pipeline(self.image_size), *_enlarge(enlarged), dict(type='PackInputs')])
        accuracy = dict(type='Accuracy', topk=(1,))
        return Config(
            dict(
                default_scope='mmpretrain',
                custom_imports=dict(imports=['fnkd_plugin'], allow_failed_imports=False),
                model=dict(type='TimmStudent', model=model, num_classes=classes, channels_last=True, **start),
                data_preprocessor=dict(
                    mean=[255 * m for m in _published(model).mean],
                    std=[255 * s for s in _published(model).std],
                    to_rgb=True,
                    num_classes=classes,
                ),
                train_dataloader=self._loader('train', _train_pipeline(self.image_size, enlarged)),
                val_dataloader=val,
                val_evaluator=accuracy,
                val_cfg=dict(),
                test_dataloader=val,
                test_evaluator=accuracy,
                test_cfg=dict(),
                train_cfg=dict(by_epoch=False, max_iters=self.iterations, val_interval=interval),
                optim_wrapper=self._optimizer(model),
                param_scheduler=_schedule(self.iterations),
                log_processor=dict(by_epoch=False),
                default_hooks=dict(
                    logger=dict(type='LoggerHook', interval=20),
                    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=interval, max_keep_ckpts=1),
                    reproducible=dict(type='ReproducibleHook'),
                    safe_checkpoint=dict(type='SafeCheckpointHook'),
                ),
                randomness=dict(seed=seed),
            )
        )

    def teacher_size(self, model: str) -> int:
        """The size to which a teacher enlarges the student's images: up to 1.5 times, not above its own.

        A model that was pretrained on large images is better on enlarged ones than on small ones: on 20 other bird
        classes, images of 96 pixels enlarged to 144 raised a Lite2's accuracy from 57 to 63 % (our choice).
        """
        own = _published(model).input_size[-1]
        if _published(model).fixed_input_size:
            return own
        return max(self.image_size, min(own, round(self.image_size * _ENLARGED)))

    def bundle(self, model: str) -> Bundle:
        """The metadata of a model that was trained so, for inference."""
        return Bundle(model, self.photos.classes, self.image_size, _published(model).mean, _published(model).std)

    def _loader(self, part: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        dataset = dict(
            type='CustomDataset',
            data_root=str(self.photos.root),
            ann_file=str(self.lists.absolute() / f'{part}.txt'),
            classes=self.photos.classes,
            pipeline=pipeline,
        )
        training = part == 'train'
        return dict(
            batch_size=self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            dataset=dataset,
            sampler=dict(type='InfiniteSampler' if training else 'DefaultSampler', shuffle=training),
        )

    def _optimizer(self, model: str) -> dict[str, Any]:
        classifier = _published(model).classifier or ()
        names = [classifier] if isinstance(classifier, str) else classifier
        wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic') if self.amp else dict(type='OptimWrapper')
        return dict(
            **wrapper,
            optimizer=dict(type='AdamW', lr=learning_rate(model) * (self.batch_size / 32) ** 0.5, weight_decay=0.05),
            paramwise_cfg=dict(custom_keys={f'model.{name}': dict(lr_mult=OF_CLASSIFIER) for name in names}),
            clip_grad=dict(max_norm=5.0),
        )


def recipe_for(
    photos: Photos,
    lists: Path,
    image_size: int | None,
    iterations: int | None,
    model: str,
    batch_size: int | None = None,
) -> Recipe:
    """A recipe that fits the photos and this machine.

    8,000 images are seen, or each photo 10 times if that is more (our choice). The image size is the model's own on a
    GPU, and at most 128 pixels on a CPU.
    """
    gpu = torch.cuda.is_available()
    own = _published(model).input_size[-1]
    batch_size = batch_size or min(64 if gpu else 32, max(2, len(photos.train) // 8))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return Recipe(
        photos,
        lists,
        image_size or (own if gpu or _published(model).fixed_input_size else min(own, 128)),
        iterations or max(_IMAGES, _PASSES * len(photos.train)) // batch_size,
        batch_size,
        min(8, cores) if gpu else min(4, max(1, cores // 2)),
        gpu,
    )


def learning_rate(model: str) -> float:
    """AdamW's learning rate for a timm model at a batch of 32 (found on other birds, see docs/get_started.md)."""
    with torch.device('meta'):
        modules = timm.create_model(model).modules()
    return LEARNING_RATES[any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in modules)]


def _published(model: str) -> PretrainedCfg:
    """What timm says of a model's published weights; its defaults for a model of the user's without any."""
    return timm.models.get_pretrained_cfg(model) or PretrainedCfg()


def with_method(cfg: Config, method: str, teacher: dict[str, Any]) -> Config:
    """A plain config trained by a method: ``plain``, ``lsr``, or a distillation method."""
    if method == 'plain':
        return cfg
    return smooth_labels(cfg) if method == 'lsr' else distill(cfg, teacher, method)


def _train_pipeline(size: int, enlarged: int | None) -> list[dict[str, Any]]:
    return [
        dict(type='LoadImageFromFile'),
        dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.35, 1.0), **RESIZING),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        *_enlarge(enlarged),
        dict(type='PackInputs'),
    ]


def _enlarge(size: int | None) -> list[dict[str, Any]]:
    return [dict(type='Resize', scale=(size, size), **RESIZING)] if size else []


def _schedule(iterations: int) -> list[dict[str, Any]]:
    warmup = max(1, iterations // 10)
    rest = iterations - warmup
    cosine = dict(type='CosineAnnealingLR', T_max=rest, begin=warmup, end=iterations, by_epoch=False)
    return [dict(type='LinearLR', start_factor=0.05, begin=0, end=warmup, by_epoch=False), *([cosine] if rest else [])]
