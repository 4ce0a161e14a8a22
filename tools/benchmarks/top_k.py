"""Errors of loss and gradient on real images if a cache stores the k largest logits only."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from experiments.readme import markdown
from mmengine.config import ConfigDict
from mmpretrain.registry import DATASETS
from torch import Tensor

from fnkd_plugin.losses import FNKDLoss, KDLoss
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.losses.top_k import compress
from fnkd_plugin.mm.replay.seeded_dataset import seed_samples
from fnkd_plugin.prediction import Prediction, SparsePrediction
from fnkd_plugin.teachers import PixelFormat, TimmTeacher

_STUDENT, _TEACHER = 'tf_efficientnet_lite0', 'tf_efficientnet_lite2'
_TOP, _ALONE = (10, 20, 50, 100), 50
_IMAGES, _SIZE = 512, 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Errors for each policy and k, relative to the loss and the gradient's norm with all logits in fp32.

    Both models have ImageNet weights and 1,000 classes; the images are crops of CUB-200-2010's training set. ``plain``
    are the errors with the k largest logits alone, renormalised, and ``fp16`` those with all logits in fp16.
    """
    images = _images(_IMAGES, _SIZE)
    student, teacher = (_prediction(name, images) for name in (_STUDENT, _TEACHER))
    assert teacher.feature_norm is not None
    third = float(teacher.feature_norm.mean()) / 3
    policies = {f'KD, T = {t}': KDLoss(float(t)) for t in (1, 2, 4, 10)}
    policies |= {f'FNKD, τ = {tau:.3g}': FNKDLoss(tau) for tau in (2.0, 5.0, third)}
    rows = []
    for name, loss in policies.items():
        value, gradient = _loss(loss, student, teacher)

        def errors(
            other: Prediction, loss: SoftTargetLoss = loss, value: float = value, gradient: Tensor = gradient
        ) -> list[float]:
            v, g = _loss(loss, student, other)
            return [abs(v - value) / value, float((g - gradient).norm() / gradient.norm())]

        half = errors(teacher._replace(logits=teacher.logits.half().double()))
        probabilities = loss.scaled_logits(teacher).tensor().softmax(1)
        for k in _TOP:
            sparse = _sparse(teacher, k)
            alone = torch.full_like(teacher.logits, -1e9).scatter(1, sparse.classes, sparse.logits)
            row = dict(policy=name, k=k, mass=float(probabilities.gather(1, sparse.classes).sum(1).mean()))
            row |= dict(top_k=errors(sparse), plain=errors(teacher._replace(logits=alone)), fp16=half)
            rows.append(row)
    return dict(student=_STUDENT, teacher=_TEACHER, images=_IMAGES, size=_SIZE, rows=rows)


def table(results: dict[str, Any]) -> str:
    """A Markdown table of the gradients' errors, a row for each policy."""
    by_policy: dict[str, dict[int, dict[str, Any]]] = {}
    for row in results['rows']:
        by_policy.setdefault(row['policy'], {})[row['k']] = row
    rows = []
    for policy, found in by_policy.items():
        errors = [found[k]['top_k'][1] for k in _TOP] + [found[_ALONE]['plain'][1], found[_ALONE]['fp16'][1]]
        rows.append([policy, *map(_share, errors)])
    heads = [f'k = {k}' for k in _TOP]
    return markdown(['policy', *heads, f'the {_ALONE} largest alone, renormalised', 'all in fp16'], rows)


def _share(error: float) -> str:
    return f'{100 * error:.2g} %' if error < 0.995 else f'{error:.1f} times'


def _images(count: int, size: int) -> Tensor:
    root = Path(os.environ['FNKD_DATA']) / 'cub200_2010'
    crop = dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.35, 1.0), interpolation='bicubic')
    pipeline = [dict(type='LoadImageFromFile'), crop, dict(type='PackInputs')]
    dataset = DATASETS.build(ConfigDict(type='CUB2010', data_root=str(root), split='train', pipeline=pipeline))
    seed_samples(dataset, 0)
    step = len(dataset) // count
    return torch.stack([dataset[i * step]['inputs'] for i in range(count)])


def _prediction(name: str, images: Tensor) -> Prediction:
    weights = Path(os.environ['FNKD_WEIGHTS']) / f'{name}.fp16.safetensors'
    model = TimmTeacher(name, weights, execution=dict(channels_last=True))
    model.prepare(PixelFormat.of([0.0] * 3, [1.0] * 3, 'bgr'))
    parts = [model.predict(batch.float()) for batch in images.split(32)]
    logits, norms = (torch.cat([part[i] for part in parts]).double() for i in (0, 1))
    assert parts[0].origin is not None
    return Prediction(logits, norms, parts[0].origin.double())


def _sparse(teacher: Prediction, k: int) -> SparsePrediction:
    """The prediction as a cache stores it: values in fp16, moments in fp32."""
    values, classes, tail = compress(teacher.logits, teacher.origin, k)
    stored = teacher._replace(logits=values.half().double())
    return SparsePrediction.of(stored, classes, tail.float().double(), teacher.logits.shape[1])


def _loss(loss: SoftTargetLoss, student: Prediction, teacher: Prediction) -> tuple[float, Tensor]:
    z = student.logits.clone().requires_grad_()
    value = loss(student._replace(logits=z), teacher)
    return float(value.detach()), torch.autograd.grad(value, z)[0]
