"""How many operations a distilled step calls, beside a loop of knowledge distillation written by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import MEAN, STD, build, distilled, raw_batch, resnet, timm_teacher


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(function))
        return function(*args, **kwargs or {})


def _count(step: Callable[[], Tensor]) -> int:
    with _Counter() as counter:
        step().backward()
    return len(counter.calls)


def _by_hand(student: Any, teacher: nn.Module, data: dict, temperature: float = 4.0) -> Tensor:
    """Hinton's loss as most write it."""
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    with torch.no_grad():
        v = teacher(data['inputs'])
    z = student(data['inputs'])
    soft = F.kl_div(F.log_softmax(z / temperature, 1), F.softmax(v / temperature, 1), reduction='batchmean')
    return F.cross_entropy(z, labels) + temperature**2 * soft


# Calls of torch more than the loop by hand, at most: little reserve on what was counted (18, 54, 58, 66, 72, 153).
LIMITS = {'KDLoss': 20, 'FNKDLoss': 56, 'LSKDLoss': 60, 'NormKDLoss': 68, 'DKDLoss': 74, 'DISTLoss': 156}


@pytest.mark.parametrize('kind', LIMITS)
def test_a_step_calls_few_operations_more_than_one_by_hand(kind: str, tmp_path: Path) -> None:
    model = build(
        distilled(
            resnet(),
            timm_teacher(tmp_path, mean=MEAN, std=STD),
            dict(type=kind),
        )
    )
    data = model.data_preprocessor(raw_batch(), training=True)
    for _ in range(20):  # tau='auto' settles
        for loss in model.distillation.head.soft_losses:
            loss.observe(model.distillation.predict(**data))
    plain = model.student()
    teacher = model.distillation.teacher.model
    by_hand = _count(lambda: _by_hand(plain, teacher, data))
    model(**data, mode='loss')
    ours = _count(lambda: sum(model(**data, mode='loss').values()))  # type: ignore[arg-type,return-value]
    assert ours - by_hand <= LIMITS[kind], (kind, ours, by_hand)
