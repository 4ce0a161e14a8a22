"""How many operations a distilled step calls, beside a loop of the same method written by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import MEAN, STD, CountOperations, build, distilled, raw_batch, resnet, timm_teacher


def count(step: Callable[[], Tensor]) -> int:
    with CountOperations() as counter:
        step().backward()
    return len(counter.calls)


class Side(NamedTuple):
    """Logits [N, K], features [N, D] and bias of one network."""

    logits: Tensor
    feature: Tensor
    bias: Tensor


def _divergence(z: Tensor, v: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(z, 1), F.softmax(v, 1), reduction='batchmean')


def kd(student: Side, teacher: Side, labels: Tensor) -> Tensor:
    return 4.0**2 * _divergence(student.logits / 4.0, teacher.logits / 4.0)


def fnkd(student: Side, teacher: Side, labels: Tensor, tau: float = 5.0) -> Tensor:
    def clipped(side: Side) -> Tensor:
        s = (tau / side.feature.norm(dim=1, keepdim=True)).clamp(max=1)
        return (side.logits - side.bias) * s + side.bias

    return 9.0 * _divergence(clipped(student), clipped(teacher))


def lskd(student: Side, teacher: Side, labels: Tensor) -> Tensor:
    def normalized(z: Tensor) -> Tensor:
        return (z - z.mean(dim=1, keepdim=True)) / (1e-7 + z.std(dim=1, keepdim=True))

    return 9.0 * 4.0 * _divergence(normalized(student.logits) / 2.0, normalized(teacher.logits) / 2.0)


def normkd(student: Side, teacher: Side, labels: Tensor) -> Tensor:
    t_student, t_teacher = (2.0 * side.logits.std(dim=1, keepdim=True) for side in (student, teacher))
    log_p, q = F.log_softmax(student.logits / t_student, 1), F.softmax(teacher.logits / t_teacher, 1)
    return (t_teacher.square() * F.kl_div(log_p, q, reduction='none').sum(1, keepdim=True)).mean()


def dkd(student: Side, teacher: Side, labels: Tensor) -> Tensor:
    z, v = student.logits / 4.0, teacher.logits / 4.0
    true = F.one_hot(labels, z.shape[1]).bool()

    def pair(p: Tensor) -> Tensor:
        p_true = (p * true).sum(dim=1, keepdim=True)
        return torch.cat([p_true, 1 - p_true], dim=1)

    target = F.kl_div(pair(z.softmax(1)).log(), pair(v.softmax(1)), reduction='batchmean')
    others = _divergence(z - 1000.0 * true, v - 1000.0 * true)
    return 4.0**2 * (1.0 * target + 8.0 * others)


def dist(student: Side, teacher: Side, labels: Tensor) -> Tensor:
    def correlation(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
        return ((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    p, q = F.softmax(student.logits, 1), F.softmax(teacher.logits, 1)
    return 2.0 * (1 - correlation(p, q)) + 2.0 * (1 - correlation(p.t(), q.t()))


BY_HAND: dict[str, Callable[[Side, Side, Tensor], Tensor]] = dict(
    KDLoss=kd, FNKDLoss=fnkd, LSKDLoss=lskd, NormKDLoss=normkd, DKDLoss=dkd, DISTLoss=dist
)


def _by_hand(student: Any, teacher: nn.Module, soft: Callable[[Side, Side, Tensor], Tensor], data: dict) -> Tensor:
    """One step as it is written by hand: the student's loss on the labels, and a soft loss."""
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    with torch.no_grad():
        feature = teacher.forward_head(teacher.forward_features(data['inputs']), pre_logits=True)
        taught = Side(teacher.fc(feature), feature, teacher.fc.bias)
    feature = student.extract_feat(data['inputs'])[-1]
    learned = Side(student.head.fc(feature), feature, student.head.fc.bias)
    return student.head.loss_module(learned.logits, labels) + soft(learned, taught, labels)


# NormKD: 3 for the norms in the log, 3 for equal logits, 3 for shapes and weights.
MORE = {'NormKDLoss': 9}


@pytest.mark.parametrize('kind', BY_HAND)
def test_a_step_calls_no_more_operations_than_one_by_hand(kind: str, tmp_path: Path) -> None:
    model = build(distilled(resnet(), timm_teacher(tmp_path, mean=MEAN, std=STD), dict(type=kind)))
    data = model.data_preprocessor(raw_batch(), training=True)
    for _ in range(20):  # tau='auto' settles
        for loss in model.distillation.head.soft_losses:
            loss.observe(model.distillation.predict(**data))

    def ours() -> Tensor:
        losses = model(**data, mode='loss')
        return losses['loss_hard'] + losses['loss_soft']

    plain, teacher = model.student(), model.distillation.teacher.model
    model(**data, mode='loss')
    found = count(ours)
    of_kd = count(lambda: _by_hand(plain, teacher, kd, data))
    of_the_method = count(lambda: _by_hand(plain, teacher, BY_HAND[kind], data))
    print(f'{kind}: {found - of_the_method:+d} to the method by hand, {found - of_kd:+d} to KD by hand')
    assert found <= of_the_method + MORE.get(kind, 0)
