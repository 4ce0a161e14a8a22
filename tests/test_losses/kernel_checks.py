"""The kernels of the soft-target cross-entropy against its definition in float64.

Run by ``test_cross_entropy_kernel.py``: on a CPU in a process of its own with ``TRITON_INTERPRET=1``, which Triton
reads when it is imported, and on a GPU. Needs neither the OpenMMLab stack nor the fixtures of the set.
"""

import itertools
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fnkd_plugin.losses import cross_entropy_kernel, scaled_cross_entropy
from fnkd_plugin.losses.cross_entropy_kernel import fused_cross_entropy
from fnkd_plugin.losses.scaled_cross_entropy import plain_cross_entropy
from fnkd_plugin.losses.scaled_logits import FeatureNormScale, ScaledLogits, Target

DEVICE = 'cpu' if os.environ.get('TRITON_INTERPRET') == '1' else 'cuda'
on_gpu = pytest.mark.skipif(DEVICE == 'cpu', reason='needs CUDA: the interpreter has neither streams nor its allocator')
HALF = [torch.bfloat16, torch.float16]
# The relative error of a gradient that is rounded once; Triton's interpreter truncates to bf16.
ROUNDING = {torch.float32: 5e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
INF, NAN = float('inf'), float('nan')

Inputs = dict[str, Tensor]
Policy = Callable[[Inputs], tuple[ScaledLogits, list[Target]]]


def kd(x: Inputs) -> tuple[ScaledLogits, list[Target]]:
    return ScaledLogits(x['z'], 0.25), [(ScaledLogits(x['v'], 0.25), 16.0)]


def fnkd(x: Inputs, mode: str = 'clip') -> tuple[ScaledLogits, list[Target]]:
    student = ScaledLogits(x['z'], FeatureNormScale(x['r'], 4.0, mode), x['b'])
    return student, [(ScaledLogits(x['v'], FeatureNormScale(x['t'], 3.0, mode), x['c']), 9.0)]


def normalize(x: Inputs) -> tuple[ScaledLogits, list[Target]]:
    return fnkd(x, 'normalize')


def rows(x: Inputs) -> tuple[ScaledLogits, list[Target]]:
    """A scale and a weight for each image, without an origin."""
    return ScaledLogits(x['z'], x['r'] / 5), [(ScaledLogits(x['v'], x['t'] / 4), x['w'])]


def several(x: Inputs) -> tuple[ScaledLogits, list[Target]]:
    """Three teachers, each with its own kind of scale, origin and weight."""
    student = ScaledLogits(x['z'], x['r'] / 6, x['b'])
    targets: list[Target] = [
        (ScaledLogits(x['v'], FeatureNormScale(x['t'], 4.0), x['c']), 2.0),
        (ScaledLogits(x['u'], 0.5), x['w']),
        (ScaledLogits(x['v'], x['t'] / 7), 0.5),
    ]
    return student, targets


POLICIES: list[Policy] = [kd, fnkd, normalize, rows, several]
LEARNED = ('z', 'r', 'b')


def inputs(count: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    found = {name: (3 * normal(count, classes)).to(dtype) for name in 'zvu'}
    found |= {name: 1 + 8 * torch.rand(count, generator=random) for name in 'rt'}
    found |= {name: normal(classes) for name in 'bc'} | {'w': torch.rand(count, generator=random)}
    return {name: x.to(DEVICE) for name, x in found.items()}


def outcome(loss: Callable, policy: Policy, given: Inputs, factor: float = 1.0) -> list[Tensor]:
    """The loss, and the gradients of logits, norm and origin."""
    student, targets = policy(given)
    learned = [given[name] for name in LEARNED]
    value = loss(student, targets)
    return [value, *torch.autograd.grad(factor * value, learned, allow_unused=True, materialize_grads=True)]


def learn(given: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Copies, of another type if one is given; those of LEARNED want a gradient."""
    made = {name: x.detach().to(dtype or x.dtype, copy=True) for name, x in given.items()}
    return made | {name: made[name].requires_grad_() for name in LEARNED}


def check(policy: Policy, given: Inputs, factor: float = 1.0) -> None:
    found = outcome(fused_cross_entropy, policy, learn(given), factor)
    expected = outcome(plain_cross_entropy, policy, learn(given, torch.float64), factor)
    assert found[0].dtype == torch.float32 and found[1].dtype == given['z'].dtype
    for name, mine, theirs in zip(('value', *LEARNED), found, expected, strict=True):
        error = (mine.double() - theirs).norm()
        bound = ROUNDING[given['z'].dtype] if name == 'z' else 5e-6
        # Where student and teacher agree a gradient is the difference of equal numbers.
        assert error <= bound * theirs.norm() + 1e-7 * factor, (name, float(error / theirs.norm()))


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize(('count', 'classes'), [(1, 2), (3, 5), (70, 10), (5, 100), (2, 1000)])
def test_value_and_gradients(policy: Policy, count: int, classes: int) -> None:
    check(policy, inputs(count, classes))


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('policy', POLICIES)
def test_half_precision(policy: Policy, dtype: torch.dtype) -> None:
    check(policy, inputs(9, 130, dtype), factor=0.3)


def test_as_many_classes_as_imagenet_21k() -> None:
    check(kd, inputs(1, 21_841, torch.bfloat16))


LARGER = [
    (4096, 2, torch.float32),
    (1000, 17, torch.bfloat16),
    (513, 128, torch.float16),
    (257, 129, torch.bfloat16),
    (32, 1000, torch.float32),
    (2, 21_841, torch.float16),
]


@pytest.mark.slow
@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize(('count', 'classes', 'dtype'), LARGER)
def test_value_and_gradients_of_larger_batches(policy: Policy, count: int, classes: int, dtype: torch.dtype) -> None:
    check(policy, inputs(count, classes, dtype))


@pytest.mark.parametrize(('value', 'gradient'), [((16, 16), (16, 16)), ((64, 32), (64, 32)), ((16, 64), (16, 64))])
def test_no_matter_how_it_is_cut_in_tiles(
    value: tuple[int, int], gradient: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softmaxes over several tiles, programs with several tiles of rows, and sums over several programs."""
    for kind, (tile, width) in (('VALUE', value), ('GRADIENT', gradient)):
        monkeypatch.setattr(cross_entropy_kernel, f'{kind}_TILE', tile)
        monkeypatch.setattr(cross_entropy_kernel, f'{kind}_WIDTH', width)
    for in_turn, programs in ((16, 512), (2, 4)):
        monkeypatch.setattr(cross_entropy_kernel, 'TILES_IN_TURN', in_turn)
        monkeypatch.setattr(cross_entropy_kernel, 'PROGRAMS', programs)
        for policy in (several, fnkd):
            check(policy, inputs(5, 33))


def test_logits_that_rise_and_fall_over_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest logit so far changes in each tile, in none after the first, and by more than fp32's exponent."""
    monkeypatch.setattr(cross_entropy_kernel, 'VALUE_WIDTH', 16)
    given = inputs(4, 64)
    slope = torch.linspace(-3, 3, 64, device=DEVICE)
    given['z'] += torch.outer(torch.tensor([1.0, -1.0, 200.0, 0.0], device=DEVICE), slope)
    given['v'] += torch.outer(torch.tensor([-1.0, 1.0, 0.0, 200.0], device=DEVICE), slope)
    for policy in POLICIES:
        check(policy, given)


def test_large_logits_lose_nothing_to_cancellation() -> None:
    """A constant of 1e4 added to a row's logits changes neither value nor gradient by more than their own rounding."""
    given = inputs(6, 50)
    for name in 'zvu':
        given[name] = (given[name] + 1e4).round(decimals=2)
    check(kd, given)
    given['z'][0] *= -1
    given['v'] *= 0.5
    check(kd, given)


@pytest.mark.parametrize('value', [INF, -INF, NAN])
@pytest.mark.parametrize('policy', [kd, fnkd, several])
def test_what_is_not_finite_comes_out_as_it_does_by_the_definition(
    policy: Policy, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number of student or teacher, or all of a row, in the first tile and in the second."""
    monkeypatch.setattr(cross_entropy_kernel, 'VALUE_WIDTH', 16)
    for name, where in itertools.product('zv', (0, 20, slice(None))):
        given = inputs(2, 24)
        given[name][1, where] = value
        found = outcome(fused_cross_entropy, policy, learn(given))
        expected = outcome(plain_cross_entropy, policy, learn(given, torch.float64))
        # The rows' own terms, too: the gradients of the logits show each row by itself.
        for mine, theirs in zip(found[:2], expected[:2], strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
        for mine, theirs in zip(found[2:], expected[2:], strict=True):
            assert torch.equal(mine.isfinite(), theirs.isfinite()), (name, where)


def test_a_class_that_the_teacher_rules_out() -> None:
    """-inf for the teacher is probability 0, and exact."""
    given = inputs(3, 24)
    given['v'][:, 5:20] = -INF
    check(kd, given)
    check(rows, given)


@pytest.mark.parametrize('policy', [kd, fnkd, several])
def test_inputs_need_not_be_contiguous(policy: Policy) -> None:
    given = inputs(6, 40, torch.bfloat16)
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.mT.contiguous().mT if x.ndim == 2 else x,
        lambda x: torch.stack([x, x], dim=1)[:, 1],
        lambda x: torch.stack([x, x], dim=-1)[..., 0],
        lambda x: torch.cat([x.flatten(), x.new_zeros(1)])[1:].view(x.shape) if x.ndim == 1 else x,
        lambda x: x[:1].expand_as(x),
    ]
    for layout in layouts:
        strided = {name: layout(x) for name, x in given.items()}
        leaves = {name: x.detach().requires_grad_(name in LEARNED) for name, x in strided.items()}
        found = outcome(fused_cross_entropy, policy, leaves)
        expected = outcome(fused_cross_entropy, policy, learn({n: x.contiguous() for n, x in strided.items()}))
        for mine, theirs in zip(found, expected, strict=True):  # other loads, another order of sums
            torch.testing.assert_close(mine.float(), theirs.float(), rtol=2**-7, atol=1e-6)


def test_small_gradients_are_not_lost_in_fp16() -> None:
    """Under a small weight and a large loss scale: they are rounded once, after both."""
    given = inputs(4, 300, torch.float16)

    def light(x: Inputs) -> tuple[ScaledLogits, list[Target]]:
        return ScaledLogits(x['z']), [(ScaledLogits(x['v']), 1e-7)]

    found = outcome(fused_cross_entropy, light, learn(given), factor=2.0**16)[1]
    expected = outcome(plain_cross_entropy, light, learn(given, torch.float64), factor=2.0**16)[1]
    torch.testing.assert_close(found.double(), expected, rtol=2**-10, atol=2e-7)


def test_origin_and_norm_in_half_precision_get_gradients_of_their_type() -> None:
    given = inputs(6, 30, torch.bfloat16)
    half = {name: x.bfloat16() for name, x in given.items()}
    found = outcome(fused_cross_entropy, fnkd, learn(half))
    expected = outcome(plain_cross_entropy, fnkd, learn(half, torch.float64))
    assert [x.dtype for x in found[1:]] == [torch.bfloat16] * 3
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-2, atol=2e-3)


def test_a_norm_of_zero_and_one_of_just_tau() -> None:
    """Both modes take the scale 1 at a norm of 0. At tau the clip has no gradient; torch's depends on its version."""
    given = inputs(4, 8)
    given['r'][0] = 0.0
    for policy in (fnkd, normalize):
        check(policy, given)
    given['r'][1] = 4.0
    assert outcome(fused_cross_entropy, fnkd, learn(given))[2][:2].tolist() == [0.0, 0.0]


def test_one_number_for_all_can_be_learned() -> None:
    given = inputs(5, 12)
    results = []
    for loss, dtype in ((fused_cross_entropy, torch.float32), (plain_cross_entropy, torch.float64)):
        s = torch.tensor(0.4, dtype=dtype, device=DEVICE, requires_grad=True)
        z, v = (given[name].to(dtype) for name in 'zv')
        value = loss(
            ScaledLogits(z, s), [(ScaledLogits(v, torch.tensor(0.5, device=DEVICE)), torch.tensor(2.0, device=DEVICE))]
        )
        results.append((value.double(), torch.autograd.grad(value, s)[0].double()))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_backward_gives_the_same_bits_each_time() -> None:
    given = learn(inputs(40, 30))
    runs = []
    for _ in range(2):
        value = fused_cross_entropy(*fnkd(given))
        learned = [given[name] for name in LEARNED]
        runs += [torch.autograd.grad(value, learned, retain_graph=True) for _ in range(2)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_only_what_wants_a_gradient_gets_one() -> None:
    given = inputs(4, 6)
    for wanted in (('z',), ('r',), ('b',), ('z', 'b'), ()):
        leaves = {name: x.clone().requires_grad_(name in wanted) for name, x in given.items()}
        value = fused_cross_entropy(*fnkd(leaves))
        assert value.requires_grad == bool(wanted)
        if wanted:
            value.backward()
        reference = learn(given)
        expected = dict(zip(LEARNED, outcome(fused_cross_entropy, fnkd, reference)[1:], strict=True))
        for name, x in leaves.items():
            assert (x.grad is not None) == (name in wanted)
            if name in wanted:
                assert torch.equal(x.grad, expected[name])


def test_a_second_derivative_is_refused() -> None:
    given = learn(inputs(4, 6))
    with pytest.raises(RuntimeError, match='plain_cross_entropy'):
        torch.autograd.grad(fused_cross_entropy(*kd(given)), given['z'], create_graph=True)


def test_logits_changed_in_place_before_backward_are_noticed() -> None:
    given = inputs(4, 6)
    z = given['z'].requires_grad_() * 1
    value = fused_cross_entropy(*kd(given | {'z': z}))
    z.zero_()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        value.backward()


@on_gpu
@pytest.mark.parametrize('policy', POLICIES)
def test_it_is_taken_on_a_gpu_where_it_serves(policy: Policy) -> None:
    given = learn(inputs(9, 33))
    student, targets = policy(given)
    assert scaled_cross_entropy.scaled_cross_entropy(student, targets).grad_fn.name() == '_FusedCrossEntropyBackward'
    plain = scaled_cross_entropy.scaled_cross_entropy(*policy(learn(given, torch.float64)))
    assert plain.dtype == torch.float64
    given['v'].requires_grad_()
    value = scaled_cross_entropy.scaled_cross_entropy(*policy(given))
    assert torch.autograd.grad(value, given['v'])[0].isfinite().all()
    empty = scaled_cross_entropy.scaled_cross_entropy(*policy(learn(inputs(0, 33))))
    assert empty.isnan()


@on_gpu
def test_it_waits_for_nothing_and_can_be_captured() -> None:
    given = learn(inputs(64, 100, torch.bfloat16))
    learned = [given[name] for name in LEARNED]

    def step() -> list[Tensor]:
        student, targets = fnkd(given)
        value = scaled_cross_entropy.scaled_cross_entropy(student, targets)
        return [value.detach(), *torch.autograd.grad(value, learned)]

    step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        expected = step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for x in captured:
        x.fill_(NAN)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    with torch.no_grad():
        given['z'].copy_(given['v'])
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@on_gpu
@pytest.mark.parametrize('policy', [kd, fnkd, several])
def test_it_holds_the_gradient_and_hardly_more(policy: Policy) -> None:
    given = learn(inputs(512, 4001, torch.bfloat16))
    learned = [given[name] for name in LEARNED]
    size = given['z'].numel() * given['z'].element_size()

    def step() -> None:
        torch.autograd.grad(fused_cross_entropy(*policy(given)), learned, allow_unused=True)

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    assert size <= torch.cuda.max_memory_allocated() - before <= 1.1 * size


@on_gpu
def test_many_rows_of_many_classes_are_addressed_in_64_bits() -> None:
    """N x K > 2^31: the last row's gradient is the row's own."""
    count, classes = 2**15 + 8, 2**16 + 3
    z = torch.zeros(count, classes, dtype=torch.bfloat16, device=DEVICE)
    z[-1, :100] = 5.0
    v = torch.zeros(1, classes, dtype=torch.bfloat16, device=DEVICE).expand_as(z)
    z.requires_grad_()
    value = fused_cross_entropy(ScaledLogits(z), [(ScaledLogits(v), float(count))])
    (grad,) = torch.autograd.grad(value, z)
    expected = z[-1].double().softmax(0) - 1 / classes
    assert (grad[-1].double() - expected).norm() <= 2**-8 * expected.norm()
    assert not grad[0].any() or float(grad[0].abs().max()) < 1e-6
