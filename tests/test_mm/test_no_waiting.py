"""A distilled step waits for the device no more than a plain one: on tensors without numbers both run through."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper

from fnkd_plugin.losses import auto_tau
from fnkd_plugin.mm import teacher_guard
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


class _OnItsWay:
    """A copy to the host that is read by nobody before the next batch."""

    is_here = False

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape = tensor.shape

    def read(self) -> torch.Tensor:
        return torch.ones(self.shape)


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
def test_nothing_of_a_step_is_read_by_the_host(
    soft_loss: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``meta`` tensor has no numbers: ``item``, ``bool``, ``nonzero``, a copy to the host raise."""
    for module in (teacher_guard, auto_tau):
        monkeypatch.setattr(module, 'HostCopy', _OnItsWay)
    teacher = timm_teacher(tmp_path, mean=[100.0] * 3, std=[50.0] * 3)
    _train(build(distilled(resnet(), teacher, soft_loss)))


def test_what_is_read_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match='meta'):
        _train(build(distilled(resnet(), timm_teacher(tmp_path))))  # the guard looks at once
