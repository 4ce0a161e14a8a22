"""Text configs for the tools: a tiny student, plain and distilled, on random images in memory."""

from pathlib import Path

PLAIN = """
custom_imports = dict(imports=['tests.test_tools.images'], allow_failed_imports=False)
default_scope = 'mmpretrain'
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True, num_classes=4)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=32, loss=dict(type='CrossEntropyLoss')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))
pipeline = [
    dict(type='RandomResizedCrop', scale=16),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type='NoiseImages', count=16, pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type='NoiseImages', count=10, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 2))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=1))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
"""

DISTILLED = """
_base_ = 'plain.py'
custom_imports = dict(imports=['fnkd_plugin', 'tests.test_tools.images'], allow_failed_imports=False)
model = dict(
    _delete_=True, type='Distiller', student={{_base_.model}},
    teacher=dict(type='TimmTeacher', model='test_resnet', checkpoint='TEACHER'),
    head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss')))
"""

# PLAIN in pure Python.
PURE_PYTHON = """
from mmengine.hooks import CheckpointHook, EMAHook, LoggerHook
from mmpretrain.datasets import PackInputs, RandomFlip, RandomResizedCrop
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import CrossEntropyLoss, GlobalAveragePooling, ImageClassifier, LinearClsHead, Mixup, ResNet
from torch.optim import SGD
from tests.test_tools.images import NoiseImages

default_scope = 'mmpretrain'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True, num_classes=4)
model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18, stem_channels=4, base_channels=4),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=4, in_channels=32, loss=dict(type=CrossEntropyLoss)),
    train_cfg=dict(augments=[dict(type=Mixup, alpha=0.8)]))
pipeline = [
    dict(type=RandomResizedCrop, scale=16),
    dict(type=RandomFlip, prob=0.5, direction='horizontal'),
    dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type=NoiseImages, count=16, pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type=NoiseImages, count=10, pipeline=[dict(type=PackInputs)]),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy, topk=(1, 2))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.05, momentum=0.9))
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1), logger=dict(type=LoggerHook, interval=1))
custom_hooks = [dict(type=EMAHook, momentum=0.1)]
"""


def write_configs(folder: Path, teacher: Path) -> tuple[Path, Path]:
    """``plain.py`` and ``distilled.py`` in ``folder``."""
    plain, distilled = folder / 'plain.py', folder / 'distilled.py'
    plain.write_text(PLAIN)
    distilled.write_text(DISTILLED.replace('TEACHER', str(teacher)))
    return plain, distilled
