"""KD and FNKD against independent references, their limits and gradients; what all soft losses have in common."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin import DistillHead, Prediction
from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import norm_scale
from fnkd_plugin.losses import (
    DISTLoss,
    DKDLoss,
    FNKDLoss,
    FNTTMLoss,
    KDLoss,
    LSKDLoss,
    NormKDLoss,
    SoftLoss,
    SoftTargetLoss,
    TTMLoss,
    WTTMLoss,
)
from fnkd_plugin.losses.scaled_logits import ScaledLogits
from fnkd_plugin.prediction import EnsemblePrediction

pytestmark = pytest.mark.upstream

N, K, D = 6, 5, 4
DOUBLE = torch.float64


class Side:
    """A student's or a teacher's last layer: feature, weight, bias, and the prediction they make."""

    def __init__(self, seed: int, bias: bool = True, scale: float = 1.0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.f = scale * torch.randn(N, D, generator=random, dtype=DOUBLE)
        self.f.requires_grad_()
        self.W = torch.randn(K, D, generator=random, dtype=DOUBLE).requires_grad_()
        self.b = torch.randn(K, generator=random, dtype=DOUBLE).requires_grad_() if bias else None
        self.logits = F.linear(self.f, self.W, self.b)
        self.prediction = Prediction(self.logits, torch.linalg.vector_norm(self.f, dim=1), self.b)


def _entropy(q: Tensor) -> Tensor:
    return -(q * q.log()).sum(1).mean()


def _detached(side: Side) -> Prediction:
    return Prediction(*(None if x is None else x.detach() for x in side.prediction))


# KD


@pytest.mark.parametrize('t_squared', [True, False])
@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_kd_is_kl_divergence_plus_entropy(temperature: float, t_squared: bool) -> None:
    z, v = Side(0).logits, Side(1).logits
    q = (v / temperature).softmax(1)
    kl = F.kl_div((z / temperature).log_softmax(1), q, reduction='batchmean')
    expected = 0.7 * (temperature**2 if t_squared else 1.0) * (kl + _entropy(q))
    loss = KDLoss(temperature, loss_weight=0.7, t_squared=t_squared)
    torch.testing.assert_close(loss(Prediction(z), Prediction(v)), expected, rtol=0, atol=1e-12)


def test_kd_at_temperature_one_is_cross_entropy_with_the_mixed_target() -> None:
    """Eq. 6 and 7: (1 - a) H(q, p) + a H(q_kd, p) = H(q_t, p)."""
    alpha, labels = 0.3, torch.arange(N) % K
    z, v = Side(0).logits, Side(1).logits
    soft = KDLoss(temperature=1.0, loss_weight=alpha)(Prediction(z), Prediction(v))
    q_t = (1 - alpha) * F.one_hot(labels, K).double() + alpha * v.softmax(1)
    torch.testing.assert_close((1 - alpha) * F.cross_entropy(z, labels) + soft, F.cross_entropy(z, q_t))


def test_kd_at_a_high_temperature_matches_centred_logits() -> None:
    """T -> inf with T^2: the gradient tends to (z - v) / (N K), both centred (Hinton et al., 2015)."""
    z, v = Side(0).logits.detach().requires_grad_(), Side(1).logits.detach()
    (grad,) = torch.autograd.grad(KDLoss(temperature=1e5)(Prediction(z), Prediction(v)), z)
    difference = (z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))
    torch.testing.assert_close(grad, difference / (N * K), rtol=0, atol=1e-5)


def test_kd_needs_no_feature_norm() -> None:
    assert not KDLoss.needs_feature_norm
    assert math.isfinite(KDLoss()(Prediction(torch.randn(N, K)), Prediction(torch.randn(N, K))))


# FNKD


@pytest.mark.parametrize('tau', [0.5, 2.0, 100.0])
def test_fnkd_is_the_authors_two_logit_vectors(tau: float) -> None:
    """x2 = W (f / r min(r, tau)) + b for both, lambda^2 H(softmax(x2 teacher), softmax(x2 student))."""
    student, teacher = Side(0), Side(1, scale=2.0)

    def second(side: Side) -> Tensor:
        r = side.f.norm(dim=1, keepdim=True)
        return F.linear(side.f / r * r.clamp(max=tau), side.W, side.b)

    q = second(teacher).softmax(1).detach()
    expected = 9 * -(q * second(student).log_softmax(1)).sum(1).mean()
    found = FNKDLoss(tau=tau, mode='clip')(student.prediction, _detached(teacher))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    mine = torch.autograd.grad(found, (student.f, student.W, student.b), retain_graph=True)
    theirs = torch.autograd.grad(expected, (student.f, student.W, student.b))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize('bias', [True, False])
def test_eq_12_to_the_letter(bias: bool) -> None:
    """dL_fn/dz = p - q + (lambda^2 tau / |f_s|) (p_fn - q_fn), the norm held fixed, to 1e-9."""
    tau, weight, labels = 2.0, 9.0, torch.arange(N) % K
    student, teacher = Side(0, bias=False), Side(1, bias=bias)
    z = student.logits.detach().requires_grad_()
    r = student.prediction.feature_norm
    loss = FNKDLoss(tau=tau, loss_weight=weight, mode='normalize', detach_norm=True)
    total = F.cross_entropy(z, labels) + loss(Prediction(z, r, None), _detached(teacher))
    (grad,) = torch.autograd.grad(total, z)
    with torch.no_grad():
        p, q = z.softmax(1), F.one_hot(labels, K).double()
        p_fn = (tau * z / r[:, None]).softmax(1)
        b = 0.0 if teacher.b is None else teacher.b
        q_fn = (tau * (teacher.logits - b) / teacher.prediction.feature_norm[:, None] + b).softmax(1)
        expected = (p - q + weight * tau / r[:, None] * (p_fn - q_fn)) / N
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('mode', ['clip', 'normalize'])
def test_detach_norm_changes_the_gradient_and_not_the_value(mode: str) -> None:
    teacher = _detached(Side(1))
    found = []
    for detach in (False, True):
        student = Side(0, scale=3.0)
        loss = FNKDLoss(tau=1.0, mode=mode, detach_norm=detach)(student.prediction, teacher)
        (grad,) = torch.autograd.grad(loss, student.f)
        found.append((loss.detach(), grad, (grad * student.f).sum(1).abs().max()))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][2] < 1e-10, 'through the norm, the feature only turns'
    assert found[1][2] > 1e-3, 'with the norm held fixed, it grows or shrinks'


def test_an_infinite_tau_is_kd_at_temperature_one() -> None:
    student, teacher = Side(0), _detached(Side(1))
    torch.testing.assert_close(
        FNKDLoss(tau=1e9, loss_weight=1.0, mode='clip')(student.prediction, teacher),
        KDLoss(temperature=1.0)(student.prediction, teacher),
    )


def test_equal_norms_without_bias_are_kd_at_one_temperature() -> None:
    """The feature norm is the temperature: T = |f| / tau."""
    student, teacher = Side(0, bias=False), Side(1, bias=False)
    with torch.no_grad():
        predictions = [
            Prediction(F.linear(4 * F.normalize(side.f), side.W), torch.full((N,), 4.0, dtype=DOUBLE))
            for side in (student, teacher)
        ]
    fnkd = FNKDLoss(tau=2.0, loss_weight=1.0, mode='normalize')(*predictions)
    torch.testing.assert_close(fnkd, KDLoss(temperature=2.0, t_squared=False)(*predictions))


def test_each_norm_of_the_two_networks_scales_its_own_logits() -> None:
    student, teacher = Side(0), Side(1)
    loss = FNKDLoss(tau=2.0, mode='normalize')
    r = teacher.prediction.feature_norm
    longer = Prediction(5 * (teacher.logits - teacher.b) + teacher.b, 5 * r, teacher.b)
    torch.testing.assert_close(loss(student.prediction, longer), loss(student.prediction, teacher.prediction))
    wrong = Prediction(longer.logits, r, teacher.b)
    assert (loss(student.prediction, wrong) - loss(student.prediction, longer)).abs() > 1e-3


def test_the_students_bias_gets_its_gradient() -> None:
    """dL/db = sum of g: the bias is not scaled, so its gradient is not either."""
    student, teacher = Side(0, scale=10.0), _detached(Side(1))
    loss = FNKDLoss(tau=1.0, mode='normalize')
    (grad,) = torch.autograd.grad(loss(student.prediction, teacher), student.b)
    p = loss.scaled_logits(student.prediction).tensor().softmax(1)
    q = loss.scaled_logits(teacher).tensor().softmax(1)
    torch.testing.assert_close(grad, 9 * (p - q).mean(0))


def test_literal_eq_12_warns(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr('fnkd_plugin.losses.fnkd_loss._logger.warning', messages.append)
    FNKDLoss()
    FNKDLoss(mode='clip', detach_norm=True)
    assert not messages
    FNKDLoss(detach_norm=True)
    assert 'Eq. 12' in messages[0] and 'collapse' in messages[0] and 'student_norm' in messages[0]


ALL = {KDLoss: {}, FNKDLoss: dict(tau=2.0), DKDLoss: {}, DISTLoss: {}, LSKDLoss: {}, NormKDLoss: {}}
LABELS = torch.arange(N) % K


@pytest.mark.parametrize('kind', ALL)
def test_bf16_predictions_are_computed_in_fp32(kind: Any) -> None:
    loss: SoftLoss = kind(**ALL[kind])
    student, teacher = (
        Prediction(*(x.detach().bfloat16() for x in Side(seed).prediction if x is not None)) for seed in (0, 1)
    )
    exact = loss(*(Prediction(*(x.float() for x in p)) for p in (student, teacher)), LABELS)  # type: ignore[union-attr]
    found = loss(student, teacher, LABELS)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher, LABELS), exact)


@pytest.mark.parametrize('kind', ALL)
def test_weight_scales_the_loss(kind: Any) -> None:
    student, teacher = Side(0).prediction, _detached(Side(1))
    one, more = (kind(loss_weight=w, **ALL[kind])(student, teacher, LABELS) for w in (1.0, 2.5))
    torch.testing.assert_close(more, 2.5 * one)


@pytest.mark.parametrize('kind', ALL)
def test_the_gradient_is_least_where_the_student_is_the_teacher(kind: Any) -> None:
    teacher = _detached(Side(1))
    z = teacher.logits.clone().requires_grad_()
    loss = kind(**ALL[kind])(teacher._replace(logits=z), teacher, LABELS)
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.abs().max() < 1e-10
    for other in (-1.0, 0.5):
        moved = teacher._replace(logits=z + other * Side(2).logits)
        assert kind(**ALL[kind])(moved, teacher, LABELS) > loss


@pytest.mark.parametrize('kind', ALL)
def test_it_compiles_to_one_graph(kind: Any) -> None:
    """So that nothing waits for the GPU either: reading a value on the host breaks the graph."""
    loss: SoftLoss = kind(**ALL[kind])
    student, teacher = _detached(Side(0)), _detached(Side(1))
    compiled = torch.compile(loss, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(student, teacher, LABELS), loss(student, teacher, LABELS))


@pytest.mark.parametrize('kind', ALL)
def test_without_weight_the_teacher_is_not_run(kind: Any) -> None:
    assert not DistillHead(dict(type=kind.__name__, loss_weight=0.0)).active


def test_defaults() -> None:
    loss = FNKDLoss()
    assert (loss.loss_weight, loss.mode, loss.detach_norm) == (9.0, 'normalize', False)
    assert (KDLoss().temperature, KDLoss().t_squared, KDLoss().loss_weight) == (4.0, True, 1.0)


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
    ('kind', 'name', 'values', 'range_'),
    [
        (KDLoss, 'temperature', [0, -1.0, NAN, INF, 1e30, 1e-40, '4', None, True], '> 0'),
        (KDLoss, 'loss_weight', [-1, NAN, INF, 1e38, '1'], '>= 0'),
        (FNKDLoss, 'tau', [0, -2.0, NAN, INF, 1e300, None, True], '> 0'),
        (FNKDLoss, 'loss_weight', [-9, NAN, INF], '>= 0'),
        (DKDLoss, 'alpha', [-1, NAN, '1'], '>= 0'),
        (DKDLoss, 'beta', [-8, INF, None], '>= 0'),
        (DKDLoss, 'temperature', [0, NAN, 1e30, '4'], '> 0'),
        (DKDLoss, 'loss_weight', [-1, NAN], '>= 0'),
        (DISTLoss, 'beta', [-2, NAN, '2'], '>= 0'),
        (DISTLoss, 'gamma', [-2, INF, None], '>= 0'),
        (DISTLoss, 'temperature', [0, NAN, True], '> 0'),
        (DISTLoss, 'loss_weight', [-1, NAN], '>= 0'),
        (LSKDLoss, 'temperature', [0, -2, INF, '2'], '> 0'),
        (LSKDLoss, 'loss_weight', [-1, NAN], '>= 0'),
        (NormKDLoss, 'temperature', [0, -2, NAN, None], '> 0'),
        (NormKDLoss, 'loss_weight', [-1, INF], '>= 0'),
    ],
)
def test_bad_numbers_name_the_option_its_value_and_its_range(
    kind: Any, name: str, values: list[object], range_: str
) -> None:
    for value in values:
        with pytest.raises(SetupError) as error:
            kind(**{name: value})
        text = str(error.value)
        assert all(part in text for part in (kind.__name__, name, range_, repr(value))), text
        assert '\n' not in text


def test_invalid_options_name_the_choices() -> None:
    with pytest.raises(SetupError, match=r"FNKDLoss: mode must be 'normalize' or 'clip', but is 'clamp'"):
        FNKDLoss(mode='clamp')
    with pytest.raises(SetupError, match=r"FNKDLoss: tau must be a number > 0 or 'auto', but is 'mean'"):
        FNKDLoss(tau='mean')


def test_a_new_policy_is_a_few_lines() -> None:
    class Cosine(SoftTargetLoss):
        def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
            return ScaledLogits(prediction.logits, 1 / prediction.logits.norm(dim=1))

    student, teacher = Side(0), Side(1)
    scaled = Prediction(7 * student.logits)
    loss = Cosine(loss_weight=2.0)
    torch.testing.assert_close(loss(scaled, teacher.prediction), loss(student.prediction, teacher.prediction))


EVERY_LOSS: list[SoftLoss] = [
    KDLoss(),
    FNKDLoss(tau=2.0),
    FNKDLoss(tau=2.0, mode='clip'),
    LSKDLoss(),
    NormKDLoss(),
    TTMLoss(),
    WTTMLoss(),
    FNTTMLoss(tau=2.0),
    DKDLoss(),
    DISTLoss(),
]


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('loss', EVERY_LOSS, ids=lambda loss: type(loss).__name__)
def test_a_non_finite_logit_of_a_teacher_makes_the_loss_non_finite(loss: SoftLoss, several: bool, value: float) -> None:
    """So that a finite loss, which MMEngine reads in any case, means finite logits of the teacher."""
    student, teacher = Side(0).prediction, _detached(Side(1))
    for k in range(K):
        logits = teacher.logits.clone()
        logits[2, k] = value
        broken = teacher._replace(logits=logits)
        target = EnsemblePrediction.of([teacher, broken], [0.9, 0.1]) if several else broken
        assert not loss(student, target, LABELS).isfinite()
        if isinstance(loss, SoftTargetLoss):
            assert not loss(student, target, LABELS, image_weight=torch.zeros(N)).isfinite()


def test_a_norm_that_is_nan_is_not_taken_for_a_small_one() -> None:
    norm = torch.tensor([math.nan, 1.0, 4.0])
    for tau in (2.0, torch.tensor(2.0)):
        for mode, expected in (('clip', [1.0, 0.5]), ('normalize', [2.0, 0.5])):
            scale = norm_scale(norm, tau, mode)
            assert scale[0].isnan() and scale[1:].tolist() == expected
