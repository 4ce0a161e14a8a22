r"""Soft-target cross-entropy under any temperature policy.

A temperature policy scales each sample's logits about an origin, :math:`z'_n = b + s_n (z_n - b)`
(:class:`~fnkd_plugin.losses.scaled_logits.ScaledLogits`): KD by :math:`1/T` about 0, FNKD by
:math:`\tau / \lVert f_n \rVert` about the bias, logit standardisation by :math:`1 / (T \operatorname{std}(z_n))`. Hence
one loss covers all of them. :func:`plain_cross_entropy` defines it; on a GPU a Triton kernel computes the same.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from fnkd_plugin.functional import soft_cross_entropy
from fnkd_plugin.losses.scaled_logits import ScaledLogits, Target

__all__ = ['plain_cross_entropy', 'scaled_cross_entropy']


def scaled_cross_entropy(student: ScaledLogits, targets: Sequence[Target]) -> Tensor:
    r"""Weighted cross-entropies between teachers' and a student's softmax, mean over the batch.

    .. math:: L = \frac1N \sum_n \sum_m w_{mn} H(\sigma(v'_{mn}), \sigma(z'_n)), \qquad H(a, b) = -\sum_k a_k \log b_k

    On a GPU with Triton this is one kernel forward and one backward (:mod:`fnkd_plugin.losses.cross_entropy_kernel`),
    which computes in fp32 and is differentiable once. On other devices, under ``torch.compile`` (which fuses by
    itself), in fp64, and if a teacher or a weight requires a gradient, it is :func:`plain_cross_entropy`.

    Args:
        student: :math:`z`, :math:`s` and :math:`b`. Gradient flows through all three.
        targets: :math:`v`, :math:`s`, :math:`b` and :math:`w \ge 0` of each teacher, at least one; not detached.

    Returns:
        A scalar; fp32, or fp64 if any input is. NaN for an empty batch.
    """
    fused = _kernel_for(student, targets)
    return plain_cross_entropy(student, targets) if fused is None else fused(student, targets)


def plain_cross_entropy(student: ScaledLogits, targets: Sequence[Target]) -> Tensor:
    """The definition of :func:`scaled_cross_entropy`, in torch operators."""
    z = student.tensor()
    losses = [soft_cross_entropy(z, teacher.tensor(), weight) for teacher, weight in targets]
    return sum(losses[1:], losses[0])


def _kernel_for(student: ScaledLogits, targets: Sequence[Target]) -> Callable[..., Tensor] | None:
    """The kernel, if it supports these inputs."""
    z = student.logits
    if torch.compiler.is_compiling() or not z.is_cuda or z.numel() == 0:
        return None
    if z.device.index != torch.cuda.current_device():  # Triton launches on the current device
        return None
    fixed = [x for teacher, weight in targets for x in (*teacher.tensors(), weight) if isinstance(x, Tensor)]
    if any([x.dtype == torch.float64 or x.device != z.device for x in student.tensors() + fixed]):
        return None
    if torch.is_grad_enabled() and any([x.requires_grad for x in fixed]):
        return None
    return _fused_cross_entropy()


@cache
def _fused_cross_entropy() -> Callable[..., Tensor] | None:
    """The kernel, if Triton is installed and a first call succeeds (it may need a C compiler)."""
    try:
        from fnkd_plugin.losses.cross_entropy_kernel import fused_cross_entropy
    except ImportError:
        return None
    try:
        x = ScaledLogits(torch.zeros(1, 2, device='cuda'))
        fused_cross_entropy(x, [(x, 1.0)])
    except Exception as error:
        warnings.warn(
            f'Triton does not work here ({type(error).__name__}: {error}); torch operators compute the soft losses.',
            stacklevel=2,
        )
        return None
    return fused_cross_entropy
