"""Tiny models, data and runs that the tests share."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fnkd_plugin  # noqa: F401

CLASSES = 4
SIZE = 32
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_runs = itertools.count()


@DATASETS.register_module(force=True)
class RandomImages(BaseDataset):
    """``count`` random uint8 images in memory, class ``i % CLASSES``; nothing is read from disk."""

    def __init__(self, count: int = 16, seed: int = 0, size: int = SIZE, **kwargs: Any) -> None:
        self.count, self.seed, self.size = count, seed, size
        # Serialising calls gc.collect, which takes a third of a tiny training.
        options = dict(serialize_data=False, metainfo=dict(classes=[f'c{i}' for i in range(CLASSES)]))
        super().__init__(ann_file='', **{**options, **kwargs})

    def load_data_list(self) -> list[dict]:
        images = np.random.RandomState(self.seed).randint(0, 256, (self.count, self.size, self.size, 3))
        return [
            dict(img=image.astype(np.uint8), gt_label=i % CLASSES, img_path=f'random_{i}.png', sample_idx=i)
            for i, image in enumerate(images)
        ]


def preprocessor(**options: Any) -> dict:
    return dict(mean=MEAN, std=STD, to_rgb=True, num_classes=CLASSES, **options)


def resnet(width: int = 4, num_classes: int = CLASSES, **options: Any) -> dict:
    """The config of an MMPretrain ResNet-18 of few channels; ``width=4`` has 32 features and 50 k parameters."""
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, stem_channels=width, base_channels=width),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=num_classes,
            in_channels=8 * width,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        ),
        data_preprocessor=preprocessor(),
    )
    return {**model, **options}


def cosine(margins: float = 0.0, **options: Any) -> dict:
    """The config of a ResNet-18 as of :func:`resnet` whose logits are cosines: hypersphere embedding, or ArcFace."""
    head = dict(type='ArcFaceClsHead', num_classes=CLASSES, in_channels=32, scale=8.0, margins=margins)
    return resnet(**{'head': head, **options})


def vit(**options: Any) -> dict:
    """The config of a two-layer MMPretrain vision transformer with dropout and stochastic depth."""
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    model = dict(
        type='ImageClassifier',
        backbone=dict(
            type='VisionTransformer', arch=arch, img_size=SIZE, patch_size=8, drop_rate=0.1, drop_path_rate=0.2
        ),
        head=dict(
            type='VisionTransformerClsHead',
            num_classes=CLASSES,
            in_channels=16,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='classy_vision'),
        ),
        data_preprocessor=preprocessor(),
    )
    return {**model, **options}


def timm_student(model: str = 'test_resnet', **options: Any) -> dict:
    """The config of a ``TimmStudent``."""
    return dict(type='TimmStudent', model=model, num_classes=CLASSES, data_preprocessor=preprocessor(), **options)


TIMM_HEADS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    'linear layer': ('mobilenetv3_small_050', {}, 'classifier'),
    'wrapped linear layer': ('samvit_base_patch16_224', dict(embed_dim=12, depth=1, neck_chans=8), 'head.fc'),
    'convolution': ('resnetv2_50', dict(layers=(1,) * 4, channels=(8,) * 4, stem_chs=8), 'head.fc'),
    'mean of two': ('levit_128s', dict(embed_dim=(16,) * 3, depth=(1,) * 3, num_heads=(1,) * 3), None),
    'mean of two tokens': ('deit_tiny_distilled_patch16_224', dict(embed_dim=16, depth=1, num_heads=2), None),
    'mean of a list': ('crossvit_tiny_240', dict(embed_dim=[16, 16], num_heads=[2, 2]), None),
    'weighted sum of a list': ('efficientvim_m1', dict(embed_dim=(16,) * 3, depths=(1,) * 3), None),
    'module of two': ('repvit_m0_9', dict(embed_dim=(8,) * 4, depth=(1,) * 4), None),
}
"""For each kind of head that timm's models have: one of them, options that make it tiny, and its last affine layer."""


def timm_head(kind: str) -> tuple[nn.Module, str | None]:
    """A tiny timm model with a head of this kind of :data:`TIMM_HEADS`, and where its last affine layer is."""
    name, options, where = TIMM_HEADS[kind]
    return timm.create_model(name, num_classes=CLASSES, **options), where


def timm_checkpoint(
    folder: Path, model: str = 'test_resnet', num_classes: int = CLASSES, seed: int = 7, **options: Any
) -> Path:
    """A file with the random weights of a tiny timm model; ``options`` go to ``timm.create_model``."""
    path = Path(folder) / f'{model}_{num_classes}_{seed}{"".join(map(str, options.values()))}.pth'
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.save(timm.create_model(model, num_classes=num_classes, **options).state_dict(), path)
    return path


def timm_teacher(folder: Path, model: str = 'test_resnet', **options: Any) -> dict:
    """The config of a ``TimmTeacher`` with random weights, written to ``folder``."""
    arch = {key: options[key] for key in ('img_size',) if key in options}
    return dict(type='TimmTeacher', model=model, checkpoint=str(timm_checkpoint(folder, model, **arch)), **options)


def distilled(student: dict, teacher: Any, soft_loss: Any = None, **options: Any) -> dict:
    """The config of a ``Distiller``; ``soft_loss`` is KD by default, ``options`` go to its ``DistillHead``."""
    soft_loss = soft_loss or dict(type='KDLoss')
    return dict(
        type='Distiller',
        student=student,
        teacher=teacher,
        head=dict(type='DistillHead', soft_loss=soft_loss, **options),
    )


def config(model: Any, work_dir: Path, **options: Any) -> Config:
    """A whole config: two epochs of four batches of four random images, SGD, seed 0; ``options`` replace keys."""
    cfg = dict(
        default_scope='mmpretrain',
        experiment_name=f'test_{next(_runs)}',
        model=copy.deepcopy(model),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=dict(type='RandomImages', pipeline=[dict(type='PackInputs')]),
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1)
        ),
        custom_imports=dict(imports=['fnkd_plugin', 'tests.helpers'], allow_failed_imports=False),
        randomness=dict(seed=0),
        log_level='WARNING',
        work_dir=str(work_dir),
    )
    return Config({**cfg, **copy.deepcopy(options)})


def train(model: Any, work_dir: Path, **options: Any) -> Runner:
    """Train ``config(model, work_dir, **options)`` through MMEngine's Runner, and return that."""
    runner = Runner.from_cfg(config(model, work_dir, **options))
    runner.train()
    return runner


def build(model: dict, seed: int = 0) -> Any:
    """Build a model outside of a Runner, with initial weights from ``seed``."""
    init_default_scope('mmpretrain')
    torch.manual_seed(seed)
    built = MODELS.build(copy.deepcopy(model))
    built.init_weights()
    return built


def samples(count: int = 4) -> list[DataSample]:
    """Data samples with labels and file names."""
    return [DataSample(metainfo=dict(img_path=f'image_{i}.png')).set_gt_label(i % CLASSES) for i in range(count)]


def raw_batch(count: int = 4, seed: int = 0, size: int = SIZE) -> dict:
    """A batch as a data loader yields it: uint8 images and data samples."""
    images = np.random.RandomState(seed).randint(0, 256, (count, 3, size, size)).astype(np.uint8)
    return dict(inputs=torch.from_numpy(images), data_samples=samples(count))


def assert_same_weights(a: dict, b: dict) -> None:
    """Equal keys in equal order, and equal bits."""
    assert list(a) == list(b)
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different, f'{len(different)} of {len(a)} differ, such as {different[:3]}'


class CountOperations(TorchDispatchMode):
    """Notes the names of the operations that torch calls inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(function))
        return function(*args, **kwargs or {})
