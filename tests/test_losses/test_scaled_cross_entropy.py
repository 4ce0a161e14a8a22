"""The soft-target cross-entropy of scaled logits as torch's operators compute it, and when the kernel is taken."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fnkd_plugin.functional import logit_std, soft_cross_entropy
from fnkd_plugin.losses import FNKDLoss, KDLoss, LSKDLoss, NormKDLoss
from fnkd_plugin.losses.scaled_cross_entropy import scaled_cross_entropy
from fnkd_plugin.losses.scaled_logits import FeatureNormScale, ScaledLogits, Target
from fnkd_plugin.prediction import EnsemblePrediction, Prediction

pytestmark = pytest.mark.upstream

N, K = 6, 5
DOUBLE = torch.float64
random = torch.Generator().manual_seed(0)
Z, V, V2 = (3 * torch.randn(N, K, generator=random, dtype=DOUBLE) for _ in range(3))
R = torch.linspace(1, 9, N, dtype=DOUBLE)
B, C = torch.randn(2, K, generator=random, dtype=DOUBLE)
W = torch.rand(N, generator=random, dtype=DOUBLE)


def _kd(z: Tensor, *_: Tensor) -> tuple[ScaledLogits, list[Target]]:
    return ScaledLogits(z, 0.25), [(ScaledLogits(V, 0.25), 16.0)]


def _fnkd(z: Tensor, r: Tensor, b: Tensor, mode: str = 'clip') -> tuple[ScaledLogits, list[Target]]:
    student = ScaledLogits(z, FeatureNormScale(r, 4.0, mode), b)
    return student, [(ScaledLogits(V, FeatureNormScale(R.flip(0), 4.0, mode), C), 9.0)]


def _spread(z: Tensor, *_: Tensor) -> tuple[ScaledLogits, list[Target]]:
    return ScaledLogits(z, 0.5 / logit_std(z)), [(ScaledLogits(V, 0.5 / logit_std(V)), W)]


def _two(z: Tensor, r: Tensor, b: Tensor) -> tuple[ScaledLogits, list[Target]]:
    student = ScaledLogits(z, FeatureNormScale(r, 3.0, 'normalize'), b)
    return student, [(ScaledLogits(V, 0.5, C), 0.25), (ScaledLogits(V2, 3 / R), W)]


POLICIES = [_kd, _fnkd, _spread, _two]


def _inputs() -> list[Tensor]:
    return [x.clone().requires_grad_() for x in (Z, R, B)]


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize('policy', POLICIES)
def test_it_is_the_sum_over_teachers_of_their_cross_entropies(policy: Callable) -> None:
    """Written down once more, with the gradients of the logits, D = mean of w (p - q), and of the origin."""
    z, r, b = _inputs()
    student, targets = policy(z, r, b)

    def scaled(x: ScaledLogits) -> Tensor:
        s = x.scale.tensor() if isinstance(x.scale, FeatureNormScale) else x.scale
        s = s[:, None] if isinstance(s, Tensor) else s
        return x.logits * s if x.origin is None else (x.logits - x.origin) * s + x.origin

    log_p = scaled(student).log_softmax(1)
    terms = [-(w * (scaled(v).softmax(1) * log_p).sum(1)) for v, w in targets]
    found = scaled_cross_entropy(student, targets)
    torch.testing.assert_close(found, sum(terms).mean(), rtol=0, atol=1e-12)
    if policy is _spread:  # whose scale has a gradient of its own
        return
    s = student.scale.tensor() if isinstance(student.scale, FeatureNormScale) else torch.full((N,), student.scale)
    d = sum((torch.as_tensor(w).expand(N)[:, None] * (log_p.exp() - scaled(v).softmax(1))) for v, w in targets) / N
    of_z, _, of_b = _gradients(found, [z, r, b])
    torch.testing.assert_close(of_z, s[:, None] * d, rtol=0, atol=1e-12)
    if student.origin is not None:
        torch.testing.assert_close(of_b, ((1 - s)[:, None] * d).sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize('policy', POLICIES)
def test_gradcheck(policy: Callable) -> None:
    assert torch.autograd.gradcheck(lambda *inputs: scaled_cross_entropy(*policy(*inputs)), _inputs())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype) -> None:
    z, v = Z.to(dtype).requires_grad_(), V.to(dtype)
    student, (target,) = _fnkd(z, R.float(), B.float())
    found = scaled_cross_entropy(student, [(target[0]._replace(logits=v), target[1])])
    exact = scaled_cross_entropy(
        student._replace(logits=z.float()), [(target[0]._replace(logits=v.float()), target[1])]
    )
    assert torch.equal(found, exact)
    assert torch.autograd.grad(found, z)[0].dtype == dtype


def test_one_scale_for_all_can_be_learned() -> None:
    """A scalar tensor as scale or weight counts for all samples; the scale's gradient is their sum."""
    z, s = Z.clone().requires_grad_(), torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    found = scaled_cross_entropy(ScaledLogits(z, s), [(ScaledLogits(V), torch.tensor(2.0))])
    expected = -2 * (V.softmax(1) * (z * s).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(_gradients(found, [z, s]), _gradients(expected, [z, s]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_teacher_and_weight_can_get_a_gradient_and_so_can_the_gradient() -> None:
    z, v, w = (x.clone().requires_grad_() for x in (Z, V, W))

    def loss(z: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return scaled_cross_entropy(ScaledLogits(z), [(ScaledLogits(v), w)])

    assert torch.autograd.gradcheck(loss, (z, v, w))
    assert torch.autograd.gradgradcheck(loss, (z, v, w))
    torch.testing.assert_close(loss(z, v, w), soft_cross_entropy(z, v, w))


def test_an_empty_batch_is_nan_as_any_mean_of_nothing() -> None:
    z = torch.zeros(0, K, requires_grad=True)
    loss = scaled_cross_entropy(ScaledLogits(z), [(ScaledLogits(torch.zeros(0, K)), 1.0)])
    assert loss.isnan() and torch.autograd.grad(loss, z)[0].shape == (0, K)


@pytest.mark.parametrize(
    'loss', [KDLoss(), FNKDLoss(tau=2.0), LSKDLoss(), NormKDLoss()], ids=lambda loss: type(loss).__name__
)
@pytest.mark.parametrize('several', [False, True])
def test_every_policy_compiles_to_one_graph_with_its_gradient(loss: Any, several: bool) -> None:
    inputs = _inputs()
    teachers = [Prediction(v, R, C) for v in (V, V2)]
    teacher = EnsemblePrediction.of(teachers, [0.3, 0.7]) if several else teachers[0]
    compiled = torch.compile(
        lambda z, r, b: loss(Prediction(z, r, b), teacher), fullgraph=True, backend='aot_eager', dynamic=False
    )
    found, expected = compiled(*inputs), loss(Prediction(*inputs), teacher)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(_gradients(found, inputs), _gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
