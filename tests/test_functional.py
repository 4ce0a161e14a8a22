"""Closed forms, limits and invariances of the mathematics (../docs, paper.md)."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin.functional import (
    alsr_compensation,
    alsr_target,
    denoised_target,
    fnkd_compensation,
    kd_compensation,
    kd_target,
    logit_std,
    lsr_compensation,
    lsr_target,
    pearson_correlation,
    scale_by_feature_norm,
    scale_by_temperature,
    soft_cross_entropy,
    standardize,
)

pytestmark = pytest.mark.upstream

N, K, D = 5, 7, 6
DOUBLE = torch.float64


def _logits(seed: int = 0, scale: float = 3.0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return scale * torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class _Affine:
    """A last affine layer with everything that rescaling needs: f, W, b, z, r."""

    def __init__(self, seed: int, norms: list[float] | None = None, bias: bool = True) -> None:
        random = torch.Generator().manual_seed(seed)
        f = torch.randn(N, D, generator=random, dtype=DOUBLE)
        if norms is not None:
            f = f / f.norm(dim=1, keepdim=True) * torch.tensor(norms, dtype=DOUBLE)[:, None]
        self.f = f.requires_grad_()
        self.W = torch.randn(K, D, generator=random, dtype=DOUBLE).requires_grad_()
        self.b = torch.randn(K, generator=random, dtype=DOUBLE).requires_grad_() if bias else None
        self.z = F.linear(self.f, self.W, self.b)
        self.r = torch.linalg.vector_norm(self.f, dim=1)


# soft_cross_entropy


def test_soft_cross_entropy_is_kl_plus_entropy() -> None:
    z, v = _logits(0), _logits(1)
    q = v.softmax(1)
    kl = F.kl_div(z.log_softmax(1), q, reduction='batchmean')
    entropy = -(q * q.log()).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(z, v), kl + entropy, rtol=0, atol=1e-12)


def test_soft_cross_entropy_of_a_one_hot_teacher_is_hard_cross_entropy() -> None:
    z, labels = _logits(), torch.arange(N)
    torch.testing.assert_close(
        soft_cross_entropy(z, 1000.0 * F.one_hot(labels, K).double()), F.cross_entropy(z, labels)
    )


def test_soft_cross_entropy_ignores_constant_shifts_and_follows_class_order() -> None:
    z, v = _logits(0), _logits(1)
    loss = soft_cross_entropy(z, v)
    torch.testing.assert_close(soft_cross_entropy(z + 5.0, v - torch.randn(N, 1)), loss)
    order = torch.randperm(K)
    torch.testing.assert_close(soft_cross_entropy(z[:, order], v[:, order]), loss)


def test_soft_cross_entropy_is_least_where_both_agree() -> None:
    v = _logits(1)
    q = v.softmax(1)
    entropy = -(q * q.log()).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(v, v), entropy)
    for seed in range(2, 7):
        assert soft_cross_entropy(_logits(seed), v) > entropy


def test_soft_cross_entropy_gradient() -> None:
    z, v = _logits(0).requires_grad_(), _logits(1)
    (grad,) = torch.autograd.grad(soft_cross_entropy(z, v), z)
    torch.testing.assert_close(grad, (z.softmax(1) - v.softmax(1)) / N, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(soft_cross_entropy, (z, v.requires_grad_()))


def test_soft_cross_entropy_of_huge_logits_is_finite() -> None:
    assert math.isfinite(soft_cross_entropy(1e4 * _logits(0).float(), -1e4 * _logits(1).float()))


# scale_by_temperature


def test_temperature_one_changes_nothing_and_a_high_one_tends_to_uniform() -> None:
    v = _logits()
    assert torch.equal(scale_by_temperature(v, 1.0), v)
    torch.testing.assert_close(scale_by_temperature(v, 1e9).softmax(1), torch.full_like(v, 1 / K), rtol=0, atol=1e-8)


def test_high_temperature_to_second_order() -> None:
    """Eq. 8: the error of the paper's form falls as 1/T^2, that of the expansion to the next order as 1/T^3."""
    v = _logits()
    papers = []
    d = v - v.mean(1, keepdim=True)
    s2 = d.square().mean(1, keepdim=True)
    errors = []
    for temperature in (100.0, 200.0):
        eq_8 = (1 + v / temperature) / (K + (v / temperature).sum(1, keepdim=True))
        papers.append((scale_by_temperature(v, temperature).softmax(1) - eq_8).abs().max())
        series = (1 + d / temperature + (d.square() - s2) / (2 * temperature**2)) / K
        errors.append((scale_by_temperature(v, temperature).softmax(1) - series).abs().max())
    assert errors[0] < 1e-4
    assert 7 < errors[0] / errors[1] < 9
    assert papers[0] < 1e-3
    assert 3.7 < papers[0] / papers[1] < 4.3


def test_entropy_grows_with_the_temperature_from_the_hard_to_the_uniform_label() -> None:
    """A sweep of T: from the teacher's guess, by ever softer labels, to log K."""
    temperatures = torch.logspace(-4, 5, 60, dtype=DOUBLE).tolist()
    q = torch.stack([scale_by_temperature(_logits(), t).softmax(1) for t in temperatures])
    entropy = torch.special.entr(q).sum(2)
    assert (entropy.diff(dim=0) >= -1e-12).all()
    assert (entropy.diff(dim=0) > 0)[20:45].all()
    assert entropy[0].max() < 1e-6
    torch.testing.assert_close(entropy[-1], torch.full((N,), math.log(K), dtype=DOUBLE), rtol=0, atol=1e-9)


# scale_by_feature_norm


@pytest.mark.parametrize('mode', ['clip', 'normalize'])
@pytest.mark.parametrize('bias', [True, False])
def test_rescaling_equals_recomputing_from_the_rescaled_feature(mode: str, bias: bool) -> None:
    tau = 2.0
    a = _Affine(0, norms=[0.5, 1.9, 2.0, 2.1, 40.0], bias=bias)
    s = tau / a.r if mode == 'normalize' else (tau / a.r).clamp(max=1)
    expected = F.linear(a.f * s[:, None], a.W, a.b)
    torch.testing.assert_close(scale_by_feature_norm(a.z, a.r, a.b, tau, mode), expected, rtol=0, atol=1e-12)


def test_clip_leaves_small_norms_alone() -> None:
    a = _Affine(0, norms=[0.1, 1.0, 1.999, 2.0, 2.001])
    scaled = scale_by_feature_norm(a.z, a.r, a.b, 2.0, 'clip')
    torch.testing.assert_close(scaled[:4], a.z[:4], rtol=0, atol=1e-12)
    assert (scaled[4] - a.z[4]).abs().max() > 1e-5


def test_modes_agree_where_every_norm_is_large() -> None:
    a = _Affine(0, norms=[2.0, 3.0, 4.0, 5.0, 60.0])
    torch.testing.assert_close(
        scale_by_feature_norm(a.z, a.r, a.b, 2.0, 'clip'), scale_by_feature_norm(a.z, a.r, a.b, 2.0, 'normalize')
    )


def test_an_infinite_tau_clips_nothing() -> None:
    a = _Affine(0)
    torch.testing.assert_close(scale_by_feature_norm(a.z, a.r, a.b, 1e12, 'clip'), a.z, rtol=0, atol=1e-12)


def test_normalized_logits_do_not_depend_on_the_norm() -> None:
    a = _Affine(0)
    scaled = scale_by_feature_norm(a.z, a.r, a.b, 2.0, 'normalize')
    assert a.b is not None
    z3 = 3 * (a.z - a.b) + a.b
    torch.testing.assert_close(scale_by_feature_norm(z3, 3 * a.r, a.b, 2.0, 'normalize'), scaled)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('mode', ['clip', 'normalize'])
@pytest.mark.parametrize('norm', [0.0, 1e-42, 1e-30, 1e-20])
def test_a_vanishing_feature_has_finite_value_and_gradient(mode: str, norm: float, dtype: torch.dtype) -> None:
    f = torch.zeros(1, D, dtype=dtype)
    f[0, 0] = norm
    f.requires_grad_()
    layer = torch.nn.Linear(D, K, dtype=dtype)
    scaled = scale_by_feature_norm(layer(f), torch.linalg.vector_norm(f, dim=1), layer.bias, 2.0, mode)
    assert torch.isfinite(scaled).all()
    grads = torch.autograd.grad(soft_cross_entropy(scaled, torch.randn(1, K)), [f, *layer.parameters()])
    assert all(torch.isfinite(grad).all() for grad in grads)
    if norm == 0:
        assert torch.equal(scaled, layer.bias[None])


@pytest.mark.parametrize('mode', ['clip', 'normalize'])
def test_gradcheck_of_the_whole_chain(mode: str) -> None:
    a = _Affine(3, norms=[0.7, 1.5, 2.5, 3.0, 9.0])
    v = _logits(1)

    def loss(f: Tensor, W: Tensor, b: Tensor) -> Tensor:
        z = scale_by_feature_norm(F.linear(f, W, b), f.norm(dim=1), b, 2.0, mode)
        return soft_cross_entropy(z, v)

    assert torch.autograd.gradcheck(loss, (a.f, a.W, a.b))


@pytest.mark.parametrize(
    ('mode', 'detach'), [('normalize', False), ('normalize', True), ('clip', False), ('clip', True)]
)
def test_closed_form_gradients(mode: str, detach: bool) -> None:
    """dW, db and df as in paper.md, "Rescaling exactly"."""
    tau = 2.0
    a = _Affine(2, norms=[0.5, 1.5, 2.5, 4.0, 9.0])
    v = _logits(1)
    r = a.r.detach() if detach else a.r
    scaled = scale_by_feature_norm(a.z, r, a.b, tau, mode)
    found = torch.autograd.grad(soft_cross_entropy(scaled, v), (a.f, a.W, a.b))
    with torch.no_grad():
        g = (scaled.softmax(1) - v.softmax(1)) / N
        u = a.f / a.r[:, None]
        touched = torch.ones(N, dtype=torch.bool) if mode == 'normalize' else a.r > tau
        s = torch.where(touched, tau / a.r, torch.ones_like(a.r))
        through = g @ a.W
        turned = through - (through * u).sum(1, keepdim=True) * u
        expected_f = s[:, None] * torch.where(touched[:, None] & (not detach), turned, through)
        expected = (expected_f, g.T @ (s[:, None] * a.f), g.sum(0))
    for have, want in zip(found, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-12)
    if mode == 'normalize' and not detach:
        assert (found[0] * a.f).sum(1).abs().max() < 1e-12, 'the soft term turns f, it does not lengthen it'


@pytest.mark.parametrize(('mode', 'detach'), [('normalize', False), ('clip', False), ('clip', True)])
def test_closed_form_gradients_at_norm_zero(mode: str, detach: bool) -> None:
    """At f = 0 the scale is 1 and its own gradient 0: df = W^T g, dW = 0, db = g."""
    a = _Affine(2, norms=[0.0] * N)
    v = _logits(1)
    scaled = scale_by_feature_norm(a.z, a.r.detach() if detach else a.r, a.b, 2.0, mode)
    found = torch.autograd.grad(soft_cross_entropy(scaled, v), (a.f, a.W, a.b))
    assert a.b is not None
    g = (a.b.softmax(0) - v.softmax(1)) / N
    for have, want in zip(found, (g @ a.W, torch.zeros(K, D, dtype=DOUBLE), g.sum(0)), strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-9)


def test_clip_at_tau_itself() -> None:
    """At r = tau both sides have one value; PyTorch versions differ in which of the one-sided gradients is taken."""
    f = torch.tensor([[3.0, 4.0]], dtype=DOUBLE, requires_grad=True)
    W, g = torch.randn(K, 2, dtype=DOUBLE), torch.randn(1, K, dtype=DOUBLE)
    z = F.linear(f, W)
    scaled = scale_by_feature_norm(z, torch.linalg.vector_norm(f, dim=1), None, 5.0)
    torch.testing.assert_close(scaled, z, rtol=0, atol=1e-12)
    (found,) = torch.autograd.grad(scaled, f, g)
    u = f.detach() / 5
    below = g @ W
    above = below - (below * u).sum() * u
    assert min((found - below).abs().max(), (found - above).abs().max()) < 1e-9


def test_unknown_mode_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'normalize' or 'clip', not 'scale'"):
        scale_by_feature_norm(_logits(), torch.ones(N), None, 1.0, 'scale')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype) -> None:
    """A large bias eats z - b in bf16: only fp32 inside gives what the rounded inputs say."""
    z, b = (_logits(dtype=torch.float32) + 100).to(dtype), torch.full((K,), 100.0, dtype=dtype)
    r = torch.linspace(1, 9, N).to(dtype)
    scaled = scale_by_feature_norm(z, r, b, 2.0)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, scale_by_feature_norm(z.float(), r.float(), b.float(), 2.0))
    loss = soft_cross_entropy(z, z)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, soft_cross_entropy(z.float(), z.float()))
    assert scale_by_temperature(z, 3.0).dtype == torch.float32


def test_double_precision_stays() -> None:
    z = _logits()
    assert soft_cross_entropy(scale_by_temperature(z, 2.0), z).dtype == torch.float64
    assert scale_by_feature_norm(z, torch.ones(N, dtype=DOUBLE), None, 2.0, 'normalize').dtype == torch.float64


def test_under_autocast_the_losses_stay_fp32() -> None:
    z, b = _logits(dtype=torch.float32), torch.randn(K)
    expected = soft_cross_entropy(scale_by_feature_norm(z, z.norm(dim=1), b, 2.0), z)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(soft_cross_entropy(scale_by_feature_norm(z, z.norm(dim=1), b, 2.0), z), expected)


# lsr_target, alsr_target


def test_lsr_target() -> None:
    labels = torch.tensor([2, 0])
    target = lsr_target(labels, K, 0.1)
    torch.testing.assert_close(target.sum(1), torch.ones(2))
    assert target[0, 2] == pytest.approx(0.9 + 0.1 / K)
    assert target[0, 1] == pytest.approx(0.1 / K)
    assert torch.equal(lsr_target(labels, K, 0.0), F.one_hot(labels, K).float())
    torch.testing.assert_close(lsr_target(F.one_hot(labels, K).double(), K, 0.1), target.double())


@pytest.mark.parametrize('seed', range(3))
def test_lsr_is_pytorchs_label_smoothing(seed: int) -> None:
    z, labels = _logits(seed), torch.randint(K, (N,))
    ours = -(lsr_target(labels, K, 0.2) * z.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(ours, F.cross_entropy(z, labels, label_smoothing=0.2), rtol=1e-6, atol=1e-7)


def test_alsr_target() -> None:
    neighbours = [[1, 2], [0], [], [3], [0, 1, 2, 4]]
    target = alsr_target(torch.arange(5), neighbours, 0.1, 0.2)
    torch.testing.assert_close(target.sum(1), torch.ones(5))
    torch.testing.assert_close(target[0], torch.tensor([0.72, 0.12, 0.12, 0.02, 0.02]))
    torch.testing.assert_close(target[3], torch.tensor([0.02, 0.02, 0.02, 0.92, 0.02]))
    # no neighbours: LSR with eps_uniform
    torch.testing.assert_close(target[2], lsr_target(torch.tensor([2]), 5, 0.1)[0])


def test_alsr_without_the_near_part_is_lsr() -> None:
    labels = torch.tensor([0, 2, 1])
    torch.testing.assert_close(alsr_target(labels, [[1], [2], [0]], 0.3, 0.0), lsr_target(labels, 3, 0.3))


def test_alsr_is_fp32_under_autocast() -> None:
    mixed = torch.tensor([[0.3, 0.7, 0.0]])
    plain = alsr_target(mixed, [[1], [2], [0]], 0.1, 0.2)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(alsr_target(mixed, [[1], [2], [0]], 0.1, 0.2), plain)


def test_alsr_mixes_the_targets_of_mixed_labels() -> None:
    neighbours = [[1], [0], [], [2]]
    mixed = torch.tensor([[0.3, 0.0, 0.7, 0.0]], dtype=DOUBLE)
    table = alsr_target(torch.arange(4), neighbours, 0.1, 0.2).double()
    torch.testing.assert_close(alsr_target(mixed, neighbours, 0.1, 0.2), 0.3 * table[:1] + 0.7 * table[2:3])


@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.bool])
def test_one_hot_labels_of_any_type_are_the_labels(dtype: torch.dtype) -> None:
    labels = torch.tensor([2, 0, 1])
    one_hot = F.one_hot(labels, 3).to(dtype)
    for target in (lambda q: alsr_target(q, [[1], [2], [0]], 0.1, 0.2), lambda q: lsr_target(q, 3, 0.1)):
        torch.testing.assert_close(target(one_hot), target(labels))


# kd_target, and the compensations: all methods as distributions


def test_kd_at_temperature_one_is_cross_entropy_with_its_target() -> None:
    """Eq. 4 at T = 1 is Eq. 6, value and gradient."""
    z, v, labels, alpha = _logits(0).requires_grad_(), _logits(1), torch.arange(N), 0.3
    target = kd_target(labels, v.softmax(1), alpha)
    torch.testing.assert_close(target.sum(1), torch.ones(N, dtype=DOUBLE))
    mixture = -(target * z.log_softmax(1)).sum(1).mean()
    eq_4 = (1 - alpha) * F.cross_entropy(z, labels) + alpha * soft_cross_entropy(z, v)
    torch.testing.assert_close(mixture, eq_4, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(loss, z)[0] for loss in (mixture, eq_4)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
    torch.testing.assert_close(grads[0], (z.softmax(1) - target) / N, rtol=0, atol=1e-12)


def test_lsr_alsr_and_kd_are_the_denoised_label() -> None:
    """Eq. 1, normalised: (q + eta) / (1 + sum eta) with each method's eta is its target."""
    labels, neighbours = torch.arange(N), [[1, 2], [0], [], [6], [0, 1, 2, 5], [], []]
    q_kd = _logits(1).softmax(1)
    for target, eta in (
        (lsr_target(labels, K, 0.2), lsr_compensation(labels, K, 0.2)),
        (alsr_target(labels, neighbours, 0.1, 0.3), alsr_compensation(labels, neighbours, 0.1, 0.3)),
        (kd_target(labels, q_kd, 0.4), kd_compensation(q_kd, 0.4)),
    ):
        torch.testing.assert_close(denoised_target(labels, eta), target, rtol=0, atol=3e-7)  # fp32


def test_sums_of_the_compensations() -> None:
    """The share of a label that is taken away: e / (1 - e), by class for ALSR, by sample for FNKD."""
    labels = torch.arange(2)
    q = _logits()[:2].softmax(1)
    assert lsr_compensation(labels, K, 0.2).sum(1).tolist() == pytest.approx([0.25, 0.25])
    near: list[list[int]] = [[1], *[[] for _ in range(K - 1)]]
    assert alsr_compensation(labels, near, 0.1, 0.3).sum(1).tolist() == pytest.approx([0.4 / 0.6, 0.1 / 0.9])
    assert kd_compensation(q, 0.75).sum(1).tolist() == pytest.approx([3, 3])
    norms = torch.tensor([1.0, 8.0], dtype=DOUBLE)
    assert fnkd_compensation(q, norms, 2.0, 9.0, 'clip').sum(1).tolist() == pytest.approx([9, 9 * 2 / 8])
    assert fnkd_compensation(q, norms, 2.0, 9.0, 'normalize').sum(1).tolist() == pytest.approx([18, 9 * 2 / 8])


def test_without_compensation_the_label_is_one_hot() -> None:
    labels, q = torch.arange(N), _logits().softmax(1)
    etas = [lsr_compensation(labels, K, 0.0), kd_compensation(q, 0.0), fnkd_compensation(q, torch.ones(N), 1.0, 0.0)]
    for eta in etas:
        assert torch.equal(denoised_target(labels, eta).float(), F.one_hot(labels, K).float())


@pytest.mark.parametrize('mode', ['clip', 'normalize'])
def test_the_labels_part_of_fnkds_gradient_is_minus_q_minus_eta(mode: str) -> None:
    """Eq. 12 by its labels: the gradient for one teacher minus that for another is -(eta - eta')."""
    tau, weight, labels = 2.0, 9.0, torch.arange(N)
    norms = torch.tensor([0.5, 1.0, 2.0, 4.0, 16.0], dtype=DOUBLE)
    z = _logits(0).requires_grad_()

    def gradient_and_eta(seed: int) -> tuple[Tensor, Tensor]:
        v = _logits(seed)
        soft = soft_cross_entropy(scale_by_feature_norm(z, norms, None, tau, mode), v)
        (grad,) = torch.autograd.grad(F.cross_entropy(z, labels) + weight * soft, z)
        return N * grad, fnkd_compensation(v.softmax(1), norms, tau, weight, mode)

    (grad_1, eta_1), (grad_2, eta_2) = gradient_and_eta(1), gradient_and_eta(2)
    torch.testing.assert_close(grad_1 - grad_2, eta_2 - eta_1, rtol=0, atol=1e-9)


def test_soft_cross_entropy_weighs_samples() -> None:
    z, v, weight = _logits(0), _logits(1), torch.rand(N, dtype=DOUBLE)
    each = torch.stack([soft_cross_entropy(z[[n]], v[[n]]) for n in range(N)])
    torch.testing.assert_close(soft_cross_entropy(z, v, weight), (weight * each).mean())
    torch.testing.assert_close(soft_cross_entropy(z, v, 3.0), 3 * soft_cross_entropy(z, v))


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_standardized_logits_have_mean_0_and_one_spread(temperature: float) -> None:
    z = 5 * _logits(0) + 3
    found = standardize(z, temperature)
    torch.testing.assert_close(found.mean(1), torch.zeros(N, dtype=DOUBLE))
    torch.testing.assert_close(logit_std(found), torch.full((N,), 1 / temperature, dtype=DOUBLE))
    assert (found.argsort(1) == z.argsort(1)).all()
    bound = (K - 1) ** 0.5 / temperature
    one_hot = standardize(torch.eye(K, dtype=DOUBLE), temperature)
    torch.testing.assert_close(one_hot.diagonal(), torch.full((K,), bound, dtype=DOUBLE), msg='the bound is reached')


def test_equal_logits_stay_finite() -> None:
    z = torch.full((2, K), 3.0, requires_grad=True)
    found = standardize(z)
    (grad,) = torch.autograd.grad((found * torch.arange(K)).sum(), z)
    assert (found == 0).all() and grad.isfinite().all()
    torch.testing.assert_close(logit_std(z), torch.ones(2))


def test_pearson_correlation_is_that_of_torch() -> None:
    a, b = _logits(0), _logits(1).exp()
    expected = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)])
    torch.testing.assert_close(pearson_correlation(a, b), expected)
    torch.testing.assert_close(pearson_correlation(a, -2 * a + 1), torch.full((N,), -1.0, dtype=DOUBLE))
    assert (pearson_correlation(a, torch.ones_like(a)) == 0).all(), 'a constant row'


def test_imports_no_openmmlab_package() -> None:
    """On torch alone: with the whole stack hidden, ``import fnkd_plugin.functional`` works."""
    code = (
        'import sys\n'
        "for name in ('mmengine', 'mmcv', 'mmpretrain', 'timm', 'numpy.random._pickle_'): sys.modules[name] = None\n"
        'import importlib.util as u; real = u.find_spec\n'
        "u.find_spec = lambda name, *a: None if name in ('mmengine', 'mmcv', 'mmpretrain') else real(name, *a)\n"
        'import fnkd_plugin.functional, fnkd_plugin\n'
        'try:\n    import fnkd_plugin.mm\n'
        "except ImportError as e:\n    assert 'fnkd_plugin[onedl]' in str(e), e\n"
        "else:\n    raise SystemExit('distillers imported')\n"
        'try:\n    fnkd_plugin.Distiller\n'
        "except ImportError as e:\n    assert 'fnkd_plugin[openmmlab]' in str(e), e\n"
        "else:\n    raise SystemExit('Distiller found')\n"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
