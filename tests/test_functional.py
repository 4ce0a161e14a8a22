"""Closed forms, limits and invariances of the mathematics (../docs, paper.md)."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin.functional import (
    alsr_target,
    lsr_target,
    scale_by_feature_norm,
    scale_by_temperature,
    soft_cross_entropy,
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


def test_soft_cross_entropy_of_a_sure_teacher_is_hard_cross_entropy() -> None:
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
    """Eq. 8 and its next order: the error falls as 1/T^3."""
    v = _logits()
    d = v - v.mean(1, keepdim=True)
    s2 = d.square().mean(1, keepdim=True)
    errors = []
    for temperature in (100.0, 200.0):
        series = (1 + d / temperature + (d.square() - s2) / (2 * temperature**2)) / K
        errors.append((scale_by_temperature(v, temperature).softmax(1) - series).abs().max())
    assert errors[0] < 1e-4
    assert 7 < errors[0] / errors[1] < 9


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
    scaled = scale_by_feature_norm(a.z, a.r, a.b, 2.0)
    torch.testing.assert_close(scaled[:4], a.z[:4], rtol=0, atol=1e-12)
    assert (scaled[4] - a.z[4]).abs().max() > 1e-5


def test_modes_agree_where_every_norm_is_large() -> None:
    a = _Affine(0, norms=[2.0, 3.0, 4.0, 5.0, 60.0])
    torch.testing.assert_close(
        scale_by_feature_norm(a.z, a.r, a.b, 2.0, 'clip'), scale_by_feature_norm(a.z, a.r, a.b, 2.0, 'normalize')
    )


def test_an_infinite_tau_clips_nothing() -> None:
    a = _Affine(0)
    torch.testing.assert_close(scale_by_feature_norm(a.z, a.r, a.b, 1e12), a.z, rtol=0, atol=1e-12)


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


def test_unknown_mode_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'clip' or 'normalize', not 'scale'"):
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


def test_imports_no_openmmlab_package() -> None:
    """On torch alone: with the whole stack hidden, ``import fnkd_plugin.functional`` works."""
    code = (
        'import sys\n'
        "for name in ('mmengine', 'mmcv', 'mmpretrain', 'timm', 'numpy.random._pickle_'): sys.modules[name] = None\n"
        'import importlib.util as u; real = u.find_spec\n'
        "u.find_spec = lambda name, *a: None if name in ('mmengine', 'mmcv', 'mmpretrain') else real(name, *a)\n"
        'import fnkd_plugin.functional, fnkd_plugin\n'
        'try:\n    import fnkd_plugin.losses\n'
        "except ImportError as e:\n    assert 'fnkd_plugin[onedl]' in str(e), e\n"
        "else:\n    raise SystemExit('losses imported')\n"
        'try:\n    fnkd_plugin.Distiller\n'
        "except ImportError as e:\n    assert 'fnkd_plugin[openmmlab]' in str(e), e\n"
        "else:\n    raise SystemExit('Distiller found')\n"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
