"""A tiny classifier with random weights on random images, ready to be analysed."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from fnkd_plugin.analysis.subject import Subject, build_subject
from tests.helpers import build, config, resnet

LOADER = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type='RandomImages', pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False),
)


def checkpoint(folder: Path, model: dict, seed: int = 0, spread: float = 3.0) -> Path:
    """A file of random weights whose logits differ enough between images to be worth a look."""
    built = build(model, seed)
    with torch.no_grad():
        built.head.fc.weight.normal_(0, spread, generator=torch.Generator().manual_seed(seed))
        built.head.fc.bias.normal_(0, 1, generator=torch.Generator().manual_seed(seed))
    path = folder / f'weights_{seed}.pth'
    torch.save(built.state_dict(), path)
    return path


def evaluation_config(folder: Path, model: dict | None = None, **dataset: Any) -> Config:
    """A config with validation images; ``dataset`` are options of both data sets."""
    cfg = config(model or resnet(), folder, val_dataloader=LOADER, val_cfg=dict(), val_evaluator=dict(type='Accuracy'))
    for name in ('train_dataloader', 'val_dataloader'):
        cfg[name].dataset.update(dataset)
    return cfg


def subject(folder: Path, teacher: bool = False, split: str = 'val', **dataset: Any) -> Subject:
    """A subject, with a teacher of other weights on request."""
    model = resnet()
    options: dict[str, Any] = {}
    if teacher:
        path = folder / 'teacher.py'
        config(model, folder).dump(path)
        options = dict(teacher=str(path), teacher_checkpoint=str(checkpoint(folder, model, seed=1)))
    cfg = evaluation_config(folder, model, **dataset)
    return build_subject(cfg, checkpoint(folder, model), split, **options)
