# mypy: allow-untyped-defs
r"""The soft-target cross-entropy of scaled logits as two Triton kernels, one for its value and one for its gradients.

With :math:`y_n = b + s_n (z_n - b)` the student's scaled logits, :math:`q_{mn}` the distribution of teacher :math:`m`
and :math:`w_{mn}` the weight of its samples,

.. math:: L = \frac1N \sum_{nm} w_{mn} \Big(\log \sum_k e^{y_{nk}} - \sum_k q_{mnk} y_{nk}\Big), \qquad
    D_n = \frac1N \sum_m w_{mn} (\sigma(y_n) - q_{mn})

the gradients are :math:`s_n D_n` for :math:`z_n`, :math:`D_n \cdot (z_n - b)` for :math:`s_n` and
:math:`\sum_n (1 - s_n) D_n` for :math:`b`. The first kernel reads each row once (an online softmax in fp32) and keeps
the largest logit and the normaliser of each softmax, a few numbers a row. From these the second makes the gradients,
already multiplied by the gradient of the loss: nothing of size [N, K] exists but the gradient itself, which is rounded
once to the type of the logits, and is not lost in fp16 under a small weight and a large loss scale.

Sums over rows are added up in a fixed order, so that equal inputs give equal bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fnkd_plugin.losses.scaled_logits import FeatureNormScale, ScaledLogits, Target

# Numbers in a tile, its width at most and the warps of a program; of the kernel of the value and of that of the
# gradients. The best of some twenty on an H100.
VALUE_TILE, VALUE_WIDTH, VALUE_WARPS = 512, 2048, 4
GRADIENT_TILE, GRADIENT_WIDTH, GRADIENT_WARPS = 2048, 512, 4
# A gradient for the origin is a sum over rows. A program sums up to this many tiles of rows. More are split into
# groups: so many that there are about so many programs, but so few that their sums are a small part of the logits.
TILES_IN_TURN, PROGRAMS, PART = 16, 512, 1 / 16

EPS_SQUARED = tl.constexpr(torch.finfo(torch.float32).eps ** 2)


@triton.jit
def _weight(teacher, row, row_ok, LAYOUTS: tl.constexpr, WHICH: tl.constexpr):
    """The weight of each row."""
    if LAYOUTS[5 * WHICH + 4]:
        return tl.load(teacher[4] + row, mask=row_ok, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(row).to(tl.float32) + teacher[5]


@triton.jit
def _scale(x, row, row_ok, LAYOUTS: tl.constexpr, WHICH: tl.constexpr):
    """The scale s of each row: read, or one number, or made of feature norms and tau as ``norm_scale`` does."""
    if LAYOUTS[5 * WHICH + 2] == 'number':
        s = tl.zeros_like(row).to(tl.float32) + x[2]
    else:
        s = tl.load(x[1] + row, mask=row_ok, other=1.0).to(tl.float32)
    if LAYOUTS[5 * WHICH + 2] == 'clip':
        s = x[2] / tl.where(s < x[2], x[2], s)
    elif LAYOUTS[5 * WHICH + 2] == 'normalize':
        s = x[2] / tl.where(s > x[2] * EPS_SQUARED, s, x[2])
    return s


@triton.jit
def _read(x, s, row, k, ok, K: tl.constexpr, LAYOUTS: tl.constexpr, WHICH: tl.constexpr):
    """A tile of logits less the origin, and of scaled logits; numbers like any outside."""
    offset = row.to(tl.int64)[:, None] * LAYOUTS[5 * WHICH] + k.to(tl.int64)[None, :] * LAYOUTS[5 * WHICH + 1]
    z = tl.load(x[0] + offset, mask=ok, other=0.0).to(tl.float32)
    s = s[:, None]
    if LAYOUTS[5 * WHICH + 3]:
        b = tl.load(x[3] + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        y0 = z - b
        # As torch.lerp does, b + s y0 or z + (s - 1) y0: exactly z at s = 1.
        y = tl.where(s < 0.5, b, z) + tl.where(s < 0.5, s, s - 1) * y0
    else:
        y0 = z
        y = z * s
    return y0, y


@triton.jit
def _finite(x):
    return tl.where(x == float('-inf'), 0.0, x)


@triton.jit(do_not_specialize=['N'])
def _value_kernel(
    student,
    teachers,
    losses,
    saved,
    N,
    BY_SCALE: tl.constexpr,
    LAYOUTS: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_ok = row < N
    s = _scale(student, row, row_ok, LAYOUTS, 0)
    loss = tl.zeros([ROWS], tl.float32)
    by_scale = tl.zeros([ROWS], tl.float32)
    for m in tl.static_range(len(teachers)):
        teacher = teachers[m]
        t = _scale(teacher, row, row_ok, LAYOUTS, m + 1)
        w = _weight(teacher, row, row_ok, LAYOUTS, m + 1)
        # Of each row so far: the largest scaled logit and the sum of exponentials, of student and teacher; the sums of
        # the teacher's exponentials times (y - largest y), and of both's times z - b.
        y_max = tl.full([ROWS], float('-inf'), tl.float32)
        v_max = tl.full([ROWS], float('-inf'), tl.float32)
        p_sum = tl.zeros([ROWS], tl.float32)
        q_sum = tl.zeros([ROWS], tl.float32)
        cross = tl.zeros([ROWS], tl.float32)
        p_mean = tl.zeros([ROWS], tl.float32)
        q_mean = tl.zeros([ROWS], tl.float32)
        for start in range(0, K, WIDTH):
            k = start + tl.arange(0, WIDTH)
            ok = row_ok[:, None] & (k < K)[None, :]
            y0, y = _read(student, s, row, k, ok, K, LAYOUTS, 0)
            _, u = _read(teacher, t, row, k, ok, K, LAYOUTS, m + 1)
            # Outside, p and q are 0 and what they are multiplied with is finite.
            inside_y = tl.where(ok, y, float('-inf'))
            inside_u = tl.where(ok, u, float('-inf'))
            y_new = tl.maximum(y_max, tl.max(inside_y, 1))
            v_new = tl.maximum(v_max, tl.max(inside_u, 1))
            p = tl.exp(inside_y - _finite(y_new)[:, None])
            q = tl.exp(inside_u - _finite(v_new)[:, None])
            p_keep = tl.exp(y_max - _finite(y_new))
            q_keep = tl.exp(v_max - _finite(v_new))
            shift = _finite(y_new) - _finite(y_max)
            cross = (cross - shift * q_sum) * q_keep + tl.sum(q * (y - _finite(y_new)[:, None]), 1)
            p_sum = p_sum * p_keep + tl.sum(p, 1)
            q_sum = q_sum * q_keep + tl.sum(q, 1)
            if BY_SCALE:
                p_mean = p_mean * p_keep + tl.sum(p * y0, 1)
                q_mean = q_mean * q_keep + tl.sum(q * y0, 1)
            y_max = y_new
            v_max = v_new
        loss += w * (tl.log(p_sum) - cross / q_sum)
        if BY_SCALE:
            by_scale += w * (p_mean / p_sum - q_mean / q_sum)
        tl.store(saved + (3 + 2 * m) * N + row, _finite(v_max), mask=row_ok)
        tl.store(saved + (4 + 2 * m) * N + row, w / q_sum, mask=row_ok)
        if m == 0:
            tl.store(saved + row, _finite(y_max), mask=row_ok)
            tl.store(saved + N + row, 1 / p_sum, mask=row_ok)
    tl.store(losses + row, loss / N, mask=row_ok)
    if BY_SCALE:
        tl.store(saved + 2 * N + row, by_scale / N, mask=row_ok)


@triton.jit(do_not_specialize=['N', 'TILES'])
def _gradient_kernel(
    grad,
    student,
    teachers,
    saved,
    by_logits,
    by_scale,
    by_origin,
    N,
    TILES,
    BY_SCALE: tl.constexpr,
    BY_ORIGIN: tl.constexpr,
    LAYOUTS: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    k = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    factor = tl.load(grad).to(tl.float32)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for tile in range(TILES):
        row = (tl.program_id(0) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        row_ok = row < N
        ok = row_ok[:, None] & (k < K)[None, :]
        s = _scale(student, row, row_ok, LAYOUTS, 0)
        _, y = _read(student, s, row, k, ok, K, LAYOUTS, 0)
        p = tl.exp(y - tl.load(saved + row, mask=row_ok, other=0.0)[:, None])
        p *= tl.load(saved + N + row, mask=row_ok, other=0.0)[:, None]
        d = tl.zeros([ROWS, WIDTH], tl.float32)
        for m in tl.static_range(len(teachers)):
            teacher = teachers[m]
            t = _scale(teacher, row, row_ok, LAYOUTS, m + 1)
            w = _weight(teacher, row, row_ok, LAYOUTS, m + 1)
            _, u = _read(teacher, t, row, k, ok, K, LAYOUTS, m + 1)
            q = tl.exp(u - tl.load(saved + (3 + 2 * m) * N + row, mask=row_ok, other=0.0)[:, None])
            d += w[:, None] * p - q * tl.load(saved + (4 + 2 * m) * N + row, mask=row_ok, other=0.0)[:, None]
        d *= factor / N
        offset = row.to(tl.int64)[:, None] * K + k[None, :]
        tl.store(by_logits + offset, d * s[:, None], mask=ok)
        if BY_ORIGIN:
            total += tl.where(ok, d * (1 - s)[:, None], 0.0)
        if BY_SCALE:  # noqa: SIM102 (known when compiled, the other is not)
            if tl.program_id(1) == 0:
                g = factor * tl.load(saved + 2 * N + row, mask=row_ok, other=0.0)
                if LAYOUTS[2] != 'rows':  # from the scale to the norm
                    r = tl.load(student[1] + row, mask=row_ok, other=1.0).to(tl.float32)
                    least = student[2]
                    if LAYOUTS[2] == 'normalize':
                        least *= EPS_SQUARED
                    g = tl.where(r > least, -g * s / r, 0.0)
                tl.store(by_scale + row, g, mask=row_ok)
    if BY_ORIGIN:
        tl.store(by_origin + tl.program_id(0) * K + k, tl.sum(total, 0), mask=k < K)


def fused_cross_entropy(student: ScaledLogits, targets: Sequence[Target]) -> Tensor:
    """See :func:`~fnkd_plugin.losses.scaled_cross_entropy.scaled_cross_entropy`; teachers and weights get no gradient.

    Args:
        student: Logits [N, K] of at most 32 bits, N and K > 0, on a GPU (on a CPU under Triton's interpreter).
        targets: The teachers, likewise, at least one.
    """
    (z, scale, number, origin), layout = _arguments(student)
    teachers: list[tuple[Any, ...]] = []
    layouts = [*layout, False]
    for teacher, weight in targets:
        pointers, layout = _arguments(teacher)
        w, w_number = _each(weight, len(z))
        teachers.append((*_filled(*pointers), pointers[0] if w is None else w, w_number))
        layouts += [*layout, w is not None]
    return _FusedCrossEntropy.apply(z, scale, origin, number, tuple(teachers), tuple(layouts))


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        scale: Tensor | None,
        origin: Tensor | None,
        number: float,
        teachers: tuple[tuple[Any, ...], ...],
        layouts: tuple[Any, ...],
    ) -> Tensor:
        by_scale = ctx.needs_input_grad[1]
        count, classes = z.shape
        losses = z.new_empty(count, dtype=torch.float32)
        saved = z.new_empty((3 + 2 * len(teachers), count), dtype=torch.float32)
        student = _filled(z, scale, number, origin)
        target = _compiled_for(student, teachers)
        width = min(VALUE_WIDTH, _power_of_2(classes))
        rows = max(1, VALUE_TILE // width)
        _launch(
            _value_kernel,
            (-(-count // rows), 1, 1),
            target,
            (student, teachers, losses, saved, count),
            (by_scale, layouts, classes, rows, width),
            VALUE_WARPS,
        )
        ctx.save_for_backward(z, scale, origin, saved)
        ctx.rest = number, teachers, layouts, target
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the gradient would be taken for a constant
            raise RuntimeError(
                'scaled_cross_entropy can be differentiated only once on a GPU; where create_graph=True is needed, '
                'use plain_cross_entropy.'
            )
        z, scale, origin, saved = ctx.saved_tensors
        number, teachers, layouts, target = ctx.rest
        _, by_scale, by_origin, *_ = ctx.needs_input_grad
        count, classes = z.shape
        width = min(GRADIENT_WIDTH, _power_of_2(classes))
        rows = max(1, GRADIENT_TILE // width)
        columns, tiles = -(-classes // width), -(-count // rows)
        in_turn = 1
        if by_origin:
            most = min(-(-PROGRAMS // columns), max(1, int(PART * count * z.element_size() / 4)))
            in_turn = tiles if tiles <= TILES_IN_TURN else -(-tiles // most)
        groups = -(-tiles // in_turn)
        of_z = z.new_empty((count, classes))
        of_scale = scale.new_empty(count) if by_scale else None
        of_origin = (
            z.new_empty((groups, classes) if groups > 1 else classes, dtype=torch.float32) if by_origin else None
        )
        _launch(
            _gradient_kernel,
            (groups, columns, 1),
            target if grad.data_ptr() % 16 == 0 else None,
            (
                grad,
                _filled(z, scale, number, origin),
                teachers,
                saved,
                of_z,
                saved if of_scale is None else of_scale,
                saved if of_origin is None else of_origin,
                count,
                in_turn,
            ),
            (by_scale, by_origin, layouts, classes, rows, width),
            GRADIENT_WARPS,
        )
        if of_origin is not None:
            of_origin = of_origin if groups == 1 else of_origin.sum(0)
            of_origin = of_origin if origin.dtype == torch.float32 else of_origin.to(origin.dtype)
        return of_z, of_scale, of_origin, None, None, None


def _arguments(x: ScaledLogits) -> tuple[tuple[Tensor, Tensor | None, float, Tensor | None], tuple[Any, ...]]:
    """Logits, scale or feature norm, number for all or tau, and origin; and how these are to be read."""
    scale: Tensor | None
    if isinstance(x.scale, FeatureNormScale) and not isinstance(x.scale.tau, Tensor):
        scale, number, kind = x.scale.norm.contiguous(), float(x.scale.tau), x.scale.mode
    else:
        scale, number = _each(x.scale.tensor() if isinstance(x.scale, FeatureNormScale) else x.scale, len(x.logits))
        kind = 'number' if scale is None else 'rows'
    origin = None if x.origin is None else x.origin.contiguous()
    return (x.logits, scale, number, origin), (*x.logits.stride(), kind, origin is not None)


def _each(x: Tensor | float, count: int) -> tuple[Tensor | None, float]:
    """A number for each row, [N], or else one for all."""
    return (x.expand(count).contiguous(), 0.0) if isinstance(x, Tensor) else (None, float(x))


def _filled(z: Tensor, scale: Tensor | None, number: float, origin: Tensor | None) -> tuple[Any, ...]:
    """Some tensor in the place of each that is missing and will not be read."""
    return z, z if scale is None else scale, number, z if origin is None else origin


def _power_of_2(x: int) -> int:
    """The next one, at least 16."""
    return max(16, 1 << (x - 1).bit_length())


# The kernels that were compiled, by kernel (whose own hash is slow to take), target, constants and warps.
_compiled: dict[tuple[Any, ...], Any] = {}


def _compiled_for(student: tuple[Any, ...], teachers: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...] | None:
    """What a kernel was compiled for: device and types; None where an address is not a multiple of 16."""
    tensors = [student[0], student[1], student[3]]
    for v, scale, _, origin, weight, _ in teachers:
        tensors += [v, scale, origin, weight]
    address = 0
    for x in tensors:
        address |= x.data_ptr()
    return None if address % 16 else (student[0].device, *[x.dtype for x in tensors])


def _launch(
    kernel: Any,
    grid: tuple[int, int, int],
    target: tuple[Any, ...] | None,
    arguments: tuple[Any, ...],
    constants: tuple[Any, ...],
    warps: int,
) -> None:
    """Launch a kernel, once it is compiled past Triton's own look-up, which takes longer than all the rest."""
    key = (id(kernel), target, constants, warps)
    compiled = _compiled.get(key)
    if compiled is not None:
        compiled[grid](*arguments, *constants)
        return
    compiled = kernel[grid](*arguments, *constants, num_warps=warps)  # None under the interpreter
    if compiled is not None and target is not None:
        _compiled[key] = compiled
