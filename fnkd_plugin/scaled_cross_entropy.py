r"""Soft-target cross-entropy under any temperature policy, with its gradient written down.

A temperature policy scales each sample's logits about an origin, :math:`z'_n = b + s_n (z_n - b)`
(:class:`ScaledLogits`): KD by :math:`1/T` about 0, FNKD by :math:`\tau / \lVert f_n \rVert` about the bias, logit
standardisation by :math:`1 / (T \operatorname{std}(z_n))`. A cross-entropy is linear in its target, so that
several teachers are one target. Hence one loss and one gradient for all of them (:func:`scaled_cross_entropy`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ['ScaledLogits', 'Target', 'at_least_fp32', 'plain_cross_entropy', 'scaled_cross_entropy']

# Numbers to a block of rows. On a CPU, for each thread: what its cache holds, and enough for PyTorch to use them all.
# On a GPU: so many that it is busy, and so few that the blocks of large logits are a small part of them.
_BLOCK_OF_A_THREAD = 2**16
_BLOCK_OF_A_GPU = 2**24


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32 if it is in half precision, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class ScaledLogits(NamedTuple):
    r"""Logits and how a temperature policy scales them, :math:`z' = b + s (z - b)`.

    Attributes:
        logits: :math:`z`, [N, K].
        scale: :math:`s`, the inverse temperature of each sample, [N], or one for all.
        origin: :math:`b`, the logits that scaling leaves alone, [K]; None for 0.
    """

    logits: Tensor
    scale: Tensor | float = 1.0
    origin: Tensor | None = None

    def tensor(self) -> Tensor:
        """:math:`z'`, [N, K], fp32, or fp64 if any part is. Gradient flows through all three."""
        dtype = _dtype_of([x for x in self if isinstance(x, Tensor)])
        scale, origin = _policy(self, dtype)
        return _scaled(self.logits.to(dtype), _column(scale), origin)


Target = tuple[ScaledLogits, Tensor | float]
"""A teacher's scaled logits and the weight of its samples, [N], or one for all."""


def scaled_cross_entropy(student: ScaledLogits, targets: Sequence[Target]) -> Tensor:
    r"""Weighted cross-entropies between teachers' and a student's softmax, mean over the batch.

    .. math:: L = \frac1N \sum_n \sum_m w_{mn} H(\sigma(v'_{mn}), \sigma(z'_n)), \qquad H(a, b) = -\sum_k a_k \log b_k

    With :math:`D_n = \frac1N \sum_m w_{mn} (\sigma(z'_n) - \sigma(v'_{mn}))` the gradients are :math:`s_n D_n` for
    :math:`z_n`, :math:`D_n \cdot (z_n - b)` for :math:`s_n`, and :math:`\sum_n (1 - s_n) D_n` for :math:`b`. They are
    computed along with the value and are all that is kept for the backward pass, which multiplies them by the
    gradient of the loss. So the loss can be differentiated only once: ``create_graph=True`` is refused.

    Where that does not serve, :func:`plain_cross_entropy` computes the same: under ``torch.compile``, which fuses by
    itself; where a teacher or a weight wants a gradient; and where nothing does.

    Args:
        student: :math:`z`, :math:`s` and :math:`b`. Gradient flows through all three.
        targets: :math:`v`, :math:`s`, :math:`b` and :math:`w \ge 0` of each teacher, at least one. No gradient is
            stopped here.

    Returns:
        A scalar; fp32, or fp64 if any input is. NaN for an empty batch.
    """
    given = [x for x in student if isinstance(x, Tensor)]
    fixed = [x for teacher, weight in targets for x in (*teacher, weight) if isinstance(x, Tensor)]
    if (
        torch.compiler.is_compiling()
        or not torch.is_grad_enabled()
        or not any([x.requires_grad for x in given])
        or any([x.requires_grad for x in fixed])
        or given[0].numel() == 0
    ):
        return plain_cross_entropy(student, targets)
    dtype = _dtype_of(given + fixed)
    # Autograd takes the gradients of the few numbers that are not logits back through what is done to them here.
    return _DirectCrossEntropy.apply(student.logits, *_policy(student, dtype), targets, dtype)


def plain_cross_entropy(student: ScaledLogits, targets: Sequence[Target]) -> Tensor:
    """:func:`scaled_cross_entropy` left to autograd."""
    log_p = student.tensor().log_softmax(dim=1)
    losses = [-(weight * (teacher.tensor().softmax(dim=1) * log_p).sum(dim=1)).mean() for teacher, weight in targets]
    return sum(losses[1:], losses[0])


class _DirectCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, scale: Tensor | float, origin: Tensor | None, targets: Sequence[Target], dtype: torch.dtype
    ) -> Tensor:
        _, scale_wants, origin_wants, *_ = ctx.needs_input_grad
        # A single teacher's one weight for all is a factor in the end; other weights go into the target.
        count, weight = z.shape[0], targets[0][1]
        in_target = isinstance(weight, Tensor) or len(targets) > 1
        ctx.factor = -(1.0 if in_target else weight) / count
        ctx.z_factor = ctx.factor if isinstance(scale, Tensor) else ctx.factor * scale
        ctx.dtype = z.dtype
        teachers = [_columns(teacher, weight if in_target else None, dtype) for teacher, weight in targets]
        column = _column(scale)
        blocks = _blocks(z)
        whole = torch.empty(z.shape, dtype=dtype, device=z.device) if len(blocks) > 1 else None
        totals, of_scale, of_origin = [], [], []
        for rows in blocks:
            y, s = _as(_rows(z, rows), dtype), _rows(column, rows)
            target = _target(teachers, rows, dtype)
            total, d = _compare(_scaled(y, s, origin).log_softmax(dim=1), target, _rows(whole, rows))
            totals.append(total)
            if scale_wants:
                of_scale.append((d * (y if origin is None else y - origin)).sum(dim=1))
            if origin_wants:
                of_origin.append((d * (1 - s)).sum(dim=0))
            if isinstance(s, Tensor):
                d.mul_(s)
        ctx.save_for_backward(
            d if whole is None else whole,
            torch.cat(of_scale) if scale_wants else None,
            _sum(of_origin) if origin_wants else None,
        )
        return _sum(totals) * ctx.factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the gradient would be taken for a constant
            raise RuntimeError(
                'scaled_cross_entropy can be differentiated only once; where create_graph=True is needed, '
                'use plain_cross_entropy.'
            )
        d, *others = ctx.saved_tensors
        step = grad * ctx.z_factor
        if d.dtype == ctx.dtype:
            of_z = d * step
        else:  # in blocks, since PyTorch would make all of it in fp32 first
            of_z = torch.empty_like(d, dtype=ctx.dtype)
            for rows in _blocks(d):
                torch.mul(_rows(d, rows), step, out=_rows(of_z, rows))
        return of_z, *(None if x is None else x * (grad * ctx.factor) for x in others), None, None


def _compare(log_p: Tensor, target: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum of target log p, which overwrites the target, and -N D = target - sum(target) p."""
    d = torch._log_softmax_backward_data(target, log_p, 1, log_p.dtype, out=out)
    return target.mul_(log_p).sum(), d


def _target(teachers: Sequence[tuple], rows: slice | None, dtype: torch.dtype) -> Tensor:
    """The teachers' distributions of some rows, weighed and summed."""
    parts = []
    for v, scale, origin, weight in teachers:
        part = _scaled(_as(_rows(v, rows), dtype), _rows(scale, rows), origin).softmax(dim=1)
        parts.append(part if weight is None else part.mul_(_rows(weight, rows)))
    return _sum(parts)


def _sum(tensors: list[Tensor]) -> Tensor:
    """Their sum, which may be the first of them, changed."""
    for x in tensors[1:]:
        tensors[0].add_(x)
    return tensors[0]


def _scaled(z: Tensor, scale: Tensor | float, origin: Tensor | None) -> Tensor:
    return z * scale if origin is None else torch.lerp(origin, z, scale)


def _policy(x: ScaledLogits, dtype: torch.dtype) -> tuple[Tensor | float, Tensor | None]:
    """Scale, [N] or a number, and origin."""
    return _each(x.scale, x.logits.shape[0], dtype), None if x.origin is None else _as(x.origin, dtype)


def _columns(x: ScaledLogits, weight: Tensor | float | None, dtype: torch.dtype) -> tuple[Any, ...]:
    """Logits, scale, origin and weight, ready for broadcasting over the classes."""
    scale, origin = _policy(x, dtype)
    return x.logits, _column(scale), origin, _column(_each(weight, x.logits.shape[0], dtype))


def _each(x: Any, count: int, dtype: torch.dtype) -> Any:
    if not isinstance(x, Tensor):
        return x
    return _as(x if x.shape == (count,) else x.expand(count), dtype)


def _column(x: Any) -> Any:
    return x[:, None] if isinstance(x, Tensor) else x


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _rows(x: Any, rows: slice | None) -> Any:
    return x if rows is None or not isinstance(x, Tensor) else x[rows]


def _blocks(x: Tensor) -> list[slice] | list[None]:
    """What rows to work on at a time; None for all."""
    count, classes = x.shape
    size = _BLOCK_OF_A_THREAD * torch.get_num_threads() if x.device.type == 'cpu' else _BLOCK_OF_A_GPU
    step = max(1, size // classes)
    return [None] if step >= count else [slice(start, start + step) for start in range(0, count, step)]


def _dtype_of(tensors: list[Tensor]) -> torch.dtype:
    """fp64 if one of them is, else fp32."""
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32
