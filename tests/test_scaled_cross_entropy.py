"""The cross-entropy with its gradient written down against the same left to autograd, and when which is taken."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from fnkd_plugin import Prediction, scaled_cross_entropy
from fnkd_plugin.functional import logit_std, norm_scale, soft_cross_entropy
from fnkd_plugin.losses import FNKDLoss, KDLoss, LSKDLoss, NormKDLoss
from fnkd_plugin.prediction import EnsemblePrediction
from fnkd_plugin.scaled_cross_entropy import ScaledLogits, Target, plain_cross_entropy

pytestmark = pytest.mark.upstream

direct_cross_entropy = scaled_cross_entropy.scaled_cross_entropy
N, K = 6, 5
DOUBLE = torch.float64
random = torch.Generator().manual_seed(0)
Z, V, V2 = (3 * torch.randn(N, K, generator=random, dtype=DOUBLE) for _ in range(3))
R = torch.linspace(1, 9, N, dtype=DOUBLE)
B, C = torch.randn(2, K, generator=random, dtype=DOUBLE)
W = torch.rand(N, generator=random, dtype=DOUBLE)


def _kd(z: Tensor, *_: Tensor) -> tuple[ScaledLogits, list[Target]]:
    return ScaledLogits(z, 0.25), [(ScaledLogits(V, 0.25), 16.0)]


def _fnkd(z: Tensor, r: Tensor, b: Tensor) -> tuple[ScaledLogits, list[Target]]:
    return ScaledLogits(z, norm_scale(r, 4.0), b), [(ScaledLogits(V, norm_scale(R.flip(0), 4.0), C), 9.0)]


def _spread(z: Tensor, *_: Tensor) -> tuple[ScaledLogits, list[Target]]:
    return ScaledLogits(z, 0.5 / logit_std(z)), [(ScaledLogits(V, 0.5 / logit_std(V)), W)]


def _two(z: Tensor, r: Tensor, b: Tensor) -> tuple[ScaledLogits, list[Target]]:
    return ScaledLogits(z, norm_scale(r, 3.0, 'normalize'), b), [
        (ScaledLogits(V, 0.5, C), 0.25),
        (ScaledLogits(V2, 3 / R), W),
    ]


def _about_origin(z: Tensor, _: Tensor, b: Tensor) -> tuple[ScaledLogits, list[Target]]:
    return ScaledLogits(z, 0.5, b), [(ScaledLogits(V), 1.0)]


POLICIES = [_kd, _fnkd, _spread, _two, _about_origin]


@pytest.fixture(params=[None, 2 * K, 1], ids=['whole', 'two rows', 'one row'])
def _blocks(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setattr(scaled_cross_entropy, '_BLOCK_OF_A_THREAD', request.param // torch.get_num_threads())


def _inputs(dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    return [x.to(dtype, copy=True).requires_grad_() for x in (Z, R, B)]


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def _is_direct(loss: Tensor) -> bool:
    return 'DirectCrossEntropy' in type(loss.grad_fn).__name__


@pytest.mark.usefixtures('_blocks')
@pytest.mark.parametrize('policy', POLICIES)
def test_it_is_autograds_in_value_and_gradient(policy: Callable) -> None:
    inputs = _inputs()
    direct, plain = direct_cross_entropy(*policy(*inputs)), plain_cross_entropy(*policy(*inputs))
    assert _is_direct(direct) and not _is_direct(plain)
    torch.testing.assert_close(direct, plain, rtol=0, atol=1e-12)
    for mine, theirs in zip(_gradients(2 * direct, inputs), _gradients(2 * plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.usefixtures('_blocks')
@pytest.mark.parametrize('policy', POLICIES)
def test_gradcheck(policy: Callable) -> None:
    assert torch.autograd.gradcheck(lambda *inputs: direct_cross_entropy(*policy(*inputs)), _inputs())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('policy', POLICIES)
def test_half_precision_differs_by_the_rounding_of_its_gradient_alone(policy: Callable, dtype: torch.dtype) -> None:
    """Computed in fp32 from the rounded inputs; small gradients under a large loss scale are not lost in between."""
    half = [x.to(dtype) for x in (Z, R, B)]
    scale = 2.0**12
    losses, gradients = [], []
    for kind in (dtype, torch.float32):
        inputs = [x.to(kind, copy=True).requires_grad_() for x in half]
        student, targets = policy(*inputs)
        losses.append(direct_cross_entropy(student, _single(targets)) * 1e-6)
        gradients.append(_gradients(scale * losses[-1], inputs)[0])
    assert torch.equal(*losses) and losses[0].dtype == torch.float32
    if policy is not _spread:  # whose two gradients are each rounded
        assert torch.equal(gradients[0], gradients[1].to(dtype))
    torch.testing.assert_close(gradients[0].float(), gradients[1], rtol=1e-2, atol=1e-6)


def _single(targets: list[Target]) -> list[Target]:
    def cast(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) else x

    return [(ScaledLogits(*map(cast, teacher)), cast(weight)) for teacher, weight in targets]


def test_mixed_types_are_computed_in_the_widest() -> None:
    z, v, b = Z.bfloat16().requires_grad_(), V.float(), B.clone().requires_grad_()
    loss = direct_cross_entropy(ScaledLogits(z, 0.5, b), [(ScaledLogits(v, W.half()), 1.0)])
    assert _is_direct(loss) and loss.dtype == DOUBLE
    plain = plain_cross_entropy(ScaledLogits(z, 0.5, b), [(ScaledLogits(v.double(), W.half()), 1.0)])
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-12)
    for mine, theirs in zip(_gradients(loss, [z, b]), _gradients(plain, [z, b]), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs)


def test_one_scale_for_all_can_be_learned() -> None:
    """A scalar tensor as scale or weight counts for all samples; the scale's gradient is their sum."""
    z, s = Z.clone().requires_grad_(), torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    found = direct_cross_entropy(ScaledLogits(z, s), [(ScaledLogits(V), torch.tensor(2.0))])
    assert _is_direct(found)
    expected = -2 * (V.softmax(1) * (z * s).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(_gradients(found, [z, s]), _gradients(expected, [z, s]), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.usefixtures('_blocks')
def test_logits_need_not_be_contiguous() -> None:
    wide = torch.randn(K, 2 * N, dtype=DOUBLE)
    for z in (wide.T[::2], wide.T[:N], wide[:, :1].T.expand(N, K)):
        inputs = [z.detach().requires_grad_(), *_inputs()[1:]]
        copies = [x.detach().clone().contiguous().requires_grad_() for x in inputs]
        found, expected = direct_cross_entropy(*_fnkd(*inputs)), direct_cross_entropy(*_fnkd(*copies))
        torch.testing.assert_close(found, expected)
        for mine, theirs in zip(_gradients(found, inputs), _gradients(expected, copies), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_neither_blocks_nor_another_run_change_a_bit_of_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for block in (2**20, 2**20, 3 * 100):
        monkeypatch.setattr(scaled_cross_entropy, '_BLOCK_OF_A_THREAD', block)
        z, v = torch.randn(2, 64, 100, generator=torch.Generator().manual_seed(1)).unbind()
        z, s = z.requires_grad_(), torch.linspace(0.1, 2, 64).requires_grad_()
        loss = direct_cross_entropy(ScaledLogits(z, s), [(ScaledLogits(v, 0.5), 16.0)])
        found.append((loss, *_gradients(loss, [z, s])))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][1:], other[1:], strict=True))
    assert torch.equal(found[0][0], found[1][0])


def test_twice_in_one_graph_and_backward_twice_under_autocast() -> None:
    z, v = Z.float().requires_grad_(), V.float()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = z @ torch.eye(K)
        assert logits.dtype == torch.bfloat16
        one = direct_cross_entropy(ScaledLogits(logits, 0.5), [(ScaledLogits(v, 0.5), 1.0)])
        two = soft_cross_entropy(logits, v)
    total = one + 3 * two
    assert total.dtype == torch.float32
    first, again = (torch.autograd.grad(total, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    rounded = Z.bfloat16().float()
    parts = [(rounded * s).softmax(1) - (v * s).softmax(1) for s in (0.5, 1.0)]
    torch.testing.assert_close(first, (0.5 * parts[0] + 3 * parts[1]) / N, rtol=0, atol=5e-3)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    z = Z.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r'only once; .* use plain_cross_entropy'):
        torch.autograd.grad(soft_cross_entropy(z, V), z, create_graph=True)
    plain = plain_cross_entropy(*_kd(z))
    (grad,) = torch.autograd.grad(plain, z, create_graph=True)
    assert grad.square().sum().requires_grad


def test_where_the_direct_gradient_does_not_serve_autograd_does() -> None:
    z = Z.clone().requires_grad_()
    assert _is_direct(soft_cross_entropy(z, V))
    for v, w in ((V.clone().requires_grad_(), 1.0), (V, W.clone().requires_grad_())):
        loss = soft_cross_entropy(z, v, w)
        assert not _is_direct(loss)
        assert torch.autograd.gradcheck(soft_cross_entropy, (z, v, w))
    with torch.no_grad():
        assert soft_cross_entropy(z, V).grad_fn is None
    torch.testing.assert_close(soft_cross_entropy(Z, V), soft_cross_entropy(z, V).detach())


def test_an_empty_batch_is_nan_as_any_mean_of_nothing() -> None:
    z = torch.zeros(0, K, requires_grad=True)
    loss = soft_cross_entropy(z, torch.zeros(0, K))
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
    assert _is_direct(expected)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(_gradients(found, inputs), _gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


def _peak(call: Callable[[], Any]) -> int:
    """Bytes that the allocator held at most beyond what it held before."""
    with profile(profile_memory=True) as prof:
        call()
    events = sorted((e.start_ns(), e.nbytes()) for e in prof.profiler.kineto_results.events() if e.name() == '[memory]')
    held = peak = 0
    for _, size in events:
        held += size
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('policy', [KDLoss(), FNKDLoss(tau=2.0)], ids=['kd', 'fnkd'])
def test_at_its_peak_it_holds_the_gradient_twice(
    policy: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept and what is given back, each of the logits' size in fp32; the rest is a block's."""
    count, classes = 512, 200
    monkeypatch.setattr(scaled_cross_entropy, '_BLOCK_OF_A_THREAD', 8 * classes // torch.get_num_threads())
    z, v = torch.randn(2, count, classes).to(dtype).unbind()
    z, b, r = z.detach().requires_grad_(), torch.randn(classes), torch.rand(count) + 1
    peak = _peak(lambda: torch.autograd.grad(policy(Prediction(z, r, b), Prediction(v, r, b)), z))
    fp32 = 4 * z.numel()
    assert fp32 < peak <= 2 * fp32 + 16 * 8 * classes * 4
