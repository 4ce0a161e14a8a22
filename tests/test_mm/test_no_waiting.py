"""A distilled step waits for the device no more than a plain one: on tensors without numbers both run through."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper

from tests.helpers import build, distilled, raw_batch, resnet, timm_teacher

LOSSES: list[Any] = [
    dict(type='KDLoss'),
    dict(type='FNKDLoss'),
    dict(type='FNKDLoss', tau=5.0, mode='normalize'),
    dict(type='LSKDLoss'),
    dict(type='NormKDLoss'),
    dict(type='DKDLoss'),
    dict(type='DISTLoss'),
]


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # it does not know the device


def _train(model: Any, steps: int = 3) -> None:
    model.to('meta')
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))
    for _ in range(steps):
        model.train_step(raw_batch(), optim)


@pytest.mark.upstream
@pytest.mark.parametrize('soft_loss', LOSSES, ids=lambda loss: loss['type'])
def test_nothing_of_a_step_is_read_by_the_host(soft_loss: dict, tmp_path: Path) -> None:
    """A ``meta`` tensor has no numbers: ``item``, ``bool``, ``nonzero``, a copy to the host raise."""
    teacher = timm_teacher(tmp_path, mean=[100.0] * 3, std=[50.0] * 3)
    model = build(distilled(resnet(), teacher, soft_loss))
    data = model.data_preprocessor(raw_batch(), training=True)
    for _ in range(20):  # the first batches may be read
        for loss in model.distillation.head.soft_losses:
            loss.observe(model.distillation.predict(**data))
    _train(model)
    assert model.distillation.step.teacher.logits.is_meta


@pytest.mark.parametrize('soft_loss', [dict(type='FNKDLoss'), dict(type='FNKDLoss', tau=5.0)])
def test_what_is_read_would_be_noticed(soft_loss: dict, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match='meta'):
        _train(build(distilled(resnet(), timm_teacher(tmp_path), soft_loss)))  # it reads norms of the first batch
