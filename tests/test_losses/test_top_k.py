"""Top-k logits with moments of the tail against all logits, within the documented error."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fnkd_plugin.functional import scale_by_feature_norm, scale_by_temperature, soft_cross_entropy
from fnkd_plugin.losses import FNKDLoss, KDLoss
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.losses.top_k import compress, log_target, sparse_cross_entropy
from fnkd_plugin.prediction import Prediction, SparsePrediction, most_likely

pytestmark = pytest.mark.upstream

POLICIES: dict[str, Callable[[Prediction], Tensor]] = {
    'T = 1': lambda p: scale_by_temperature(p.logits, 1.0),
    'T = 4': lambda p: scale_by_temperature(p.logits, 4.0),
    'tau = 0.3': lambda p: scale_by_feature_norm(*p, tau=0.3),
    'normalised': lambda p: scale_by_feature_norm(*p, tau=2.0, mode='normalize'),
}
LOSSES = [
    KDLoss(1.0),
    KDLoss(4.0),
    FNKDLoss(tau=0.3),
    FNKDLoss(tau=2.0, mode='normalize'),
    FNKDLoss(tau=2.0, detach_norm=True),
]


def _teacher(count: int = 6, classes: int = 7, bias: bool = True, dtype: torch.dtype = torch.float64) -> Prediction:
    """Normal logits y + b, whose two parts are correlated."""
    noise = torch.randn(count, classes, dtype=dtype)
    b = torch.randn(classes, dtype=dtype) if bias else None
    v = 2 * noise if b is None else 2 * noise + 0.5 * b + b
    return Prediction(v, torch.rand(count, dtype=dtype) * 3, b)


def _sparse(dense: Prediction, k: int) -> SparsePrediction:
    values, classes, tail = compress(dense.logits, dense.origin, k)
    return SparsePrediction.of(
        Prediction(values, dense.feature_norm, dense.origin), classes, tail, len(dense.logits[0])
    )


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('bias', [True, False])
def test_a_tail_of_one_class_loses_nothing(loss: SoftTargetLoss, bias: bool) -> None:
    teacher, student = _teacher(bias=bias), _teacher(bias=bias)
    student.logits.requires_grad_()
    sparse = _sparse(teacher, 6)
    assert torch.equal(most_likely(sparse), most_likely(teacher))
    found = [loss(student, one) for one in (teacher, sparse)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    a, b = (torch.autograd.grad(one, student.logits)[0] for one in found)
    torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('policy', POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize('bias', [True, False])
def test_the_moments_under_a_policy_are_those_of_the_scaled_logits(policy: Callable, bias: bool) -> None:
    teacher, k, n = _teacher(classes=20, bias=bias), 5, 15
    found = log_target(_sparse(teacher, k), policy)
    scaled = policy(teacher)
    top = teacher.logits.topk(k, 1).indices
    tail = scaled[torch.ones_like(scaled, dtype=torch.bool).scatter(1, top, False)].view(-1, n)
    log_mass = tail.mean(1) + tail.var(1, correction=0) / 2 + math.log(n)
    expected = torch.cat([scaled.gather(1, top), log_mass[:, None]], 1).log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('policy', [POLICIES['T = 4'], lambda p: scale_by_feature_norm(*p, tau=0.5)])
def test_the_mass_of_a_normal_tail_is_about_right(policy: Callable) -> None:
    teacher = _teacher(classes=20_000)._replace(feature_norm=torch.full((6,), 2.0, dtype=torch.float64))
    q = policy(teacher).softmax(1)
    for k in (5, 50, 500):
        found = log_target(_sparse(teacher, k), policy)[:, -1].exp()
        top = q.gather(1, teacher.logits.topk(k, 1).indices).sum(1)
        torch.testing.assert_close(found, 1 - top, rtol=0, atol=0.01)


def test_the_loss_is_that_of_the_target_with_an_even_tail() -> None:
    z = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, dtype=torch.float64)
    classes = torch.stack([torch.randperm(9)[:3] for _ in range(4)])
    log_q = torch.randn(4, 4, dtype=torch.float64).log_softmax(1)
    dense = (log_q[:, -1:].exp() / 6).repeat(1, 9).scatter(1, classes, log_q[:, :-1].exp())
    torch.testing.assert_close(dense.sum(1), torch.ones(4, dtype=torch.float64))
    expected = soft_cross_entropy(z, dense.log(), weight)
    torch.testing.assert_close(sparse_cross_entropy(z, log_q, classes, weight), expected)
    assert torch.autograd.gradcheck(lambda z: sparse_cross_entropy(z, log_q, classes, weight), z)


def test_half_precision_is_computed_in_fp32() -> None:
    z, teacher = torch.randn(4, 9).bfloat16(), _sparse(_teacher(4, 9, dtype=torch.float32), 3)
    log_q = log_target(teacher, POLICIES['T = 4'])
    found = sparse_cross_entropy(z, log_q, teacher.classes)
    assert found.dtype == torch.float32 and torch.equal(found, sparse_cross_entropy(z.float(), log_q, teacher.classes))
