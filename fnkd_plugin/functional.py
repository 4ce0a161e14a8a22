r"""The mathematics of softened labels: tensors in, tensors out, torch only.

LSR, ALSR, KD and FNKD replace the one-hot label :math:`q` by a better distribution. LSR and ALSR write that
distribution down (:func:`lsr_target`, :func:`alsr_target`); KD and FNKD take it from a teacher's logits
under a temperature policy (:func:`scale_by_temperature`, :func:`scale_by_feature_norm`) and compare it with
the student's by :func:`soft_cross_entropy`.

Half-precision inputs are computed in fp32; fp64 stays fp64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    'alsr_table',
    'alsr_target',
    'at_least_fp32',
    'lsr_target',
    'mixed_targets',
    'scale_by_feature_norm',
    'scale_by_temperature',
    'soft_cross_entropy',
]


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32 if it is in half precision, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""Cross-entropy between a teacher's and a student's softmax, mean over the batch.

    .. math:: \frac1N \sum_n H(\sigma(v_n), \sigma(z_n)), \qquad H(a, b) = -\sum_k a_k \log b_k

    Its gradient with respect to :math:`z_n` is :math:`(\sigma(z_n) - \sigma(v_n)) / N`. Source: the soft
    terms of Eq. 4 and Eq. 11 of the paper.

    Args:
        student_logits: :math:`z`, scaled by the temperature policy, [N, K].
        teacher_logits: :math:`v`, scaled by the same policy, [N, K]. No gradient is stopped here.

    Returns:
        A scalar >= the mean entropy of the teacher's distributions; fp32, or fp64 for fp64 inputs.
    """
    log_p = F.log_softmax(at_least_fp32(student_logits), dim=1)
    q = F.softmax(at_least_fp32(teacher_logits), dim=1)
    return -(q * log_p).sum(dim=1).mean()


def scale_by_temperature(logits: Tensor, temperature: float) -> Tensor:
    r"""Logits under one temperature for all samples, :math:`v / T` (Eq. 5).

    Args:
        logits: [N, K].
        temperature: :math:`T > 0`. For :math:`T \to \infty` the softmax becomes uniform (Eq. 8).

    Returns:
        Scaled logits [N, K], fp32 or fp64.
    """
    return at_least_fp32(logits) / temperature


def scale_by_feature_norm(
    logits: Tensor,
    feature_norm: Tensor,
    origin: Tensor | None,
    tau: float,
    mode: str = 'clip',
) -> Tensor:
    r"""Logits as if the penultimate feature had been rescaled to the norm :math:`\tau` (Eq. 10).

    With :math:`z = W f + b` and :math:`r = \lVert f \rVert_2`, the logits of the feature :math:`s f` are
    exactly

    .. math:: z' = (z - b) s + b, \qquad
        s = \begin{cases} \min(1, \tau / r) & \text{clip, the authors' code} \\
                          \tau / r          & \text{normalize, Eq. 10} \end{cases}

    so the bias is not scaled, as in the authors' code. At :math:`r = 0`, or so near that
    :math:`\tau / r` has no finite gradient, both take :math:`s = 1` (our choice: the paper's scale is
    infinite there, and :math:`z - b = 0` makes any finite scale equal).
    Gradient flows through the logits, the norm and the origin; detach what shall be held fixed.

    Args:
        logits: :math:`z`, [N, K].
        feature_norm: :math:`r \ge 0`, [N].
        origin: :math:`b`, the logits of the zero feature, [K]; None for a layer without bias.
        tau: The norm to rescale to, > 0, in the unit of ``feature_norm``. For :math:`\tau \to \infty`
            ``clip`` leaves the logits alone.
        mode: ``'clip'`` or ``'normalize'``.

    Returns:
        Rescaled logits [N, K], fp32 or fp64.

    Raises:
        ValueError: If ``mode`` is neither.
    """
    r = at_least_fp32(feature_norm)
    if mode == 'clip':
        scale = tau / r.clamp_min(tau)
    elif mode == 'normalize':
        # Nearer to 0 than this, z - b is rounding noise, and the gradient of tau / r overflows.
        scale = tau / torch.where(r > tau * torch.finfo(r.dtype).eps ** 2, r, tau)
    else:
        raise ValueError(f"mode is 'clip' or 'normalize', not {mode!r}")
    z = at_least_fp32(logits)
    if origin is None:
        return z * scale[:, None]
    b = at_least_fp32(origin)
    return (z - b) * scale[:, None] + b


def lsr_target(labels: Tensor, num_classes: int, eps: float) -> Tensor:
    r"""Label smoothing, :math:`(1 - \epsilon) q + \epsilon u` with :math:`u_k = 1/K` (Eq. 2).

    Args:
        labels: Class indices [N], or distributions [N, K] (mixup, CutMix).
        num_classes: :math:`K`.
        eps: :math:`0 \le \epsilon < 1`.

    Returns:
        Distributions [N, K], fp32 unless ``labels`` are distributions of another floating type.
    """
    q = F.one_hot(labels, num_classes).float() if labels.ndim == 1 else labels
    return (1 - eps) * q + eps / num_classes


def alsr_target(labels: Tensor, neighbours: Sequence[Sequence[int]], eps_uniform: float, eps_near: float) -> Tensor:
    r"""Anisotropic label smoothing, :math:`(1-\epsilon_1-\epsilon_2) q + \epsilon_1 u + \epsilon_2 \rho` (Eq. 3).

    :math:`\rho_k = 1/|A|` on the classes near the true one. A class without neighbours falls back to LSR
    with :math:`\epsilon_1` (our choice; the paper does not say).

    Args:
        labels: Class indices [N], or distributions [N, K]: the targets of their classes are mixed.
        neighbours: For each of the K classes the indices of its near classes :math:`A`.
        eps_uniform: :math:`\epsilon_1 \ge 0`.
        eps_near: :math:`\epsilon_2 \ge 0`, :math:`\epsilon_1 + \epsilon_2 < 1`.

    Returns:
        Distributions [N, K], fp32 unless ``labels`` are distributions of another floating type.
    """
    return mixed_targets(labels, alsr_table(neighbours, eps_uniform, eps_near).to(labels.device))


def alsr_table(neighbours: Sequence[Sequence[int]], eps_uniform: float, eps_near: float) -> Tensor:
    """The target of each class, one a row, [K, K], fp32; see :func:`alsr_target`."""
    num_classes = len(neighbours)
    table = torch.eye(num_classes)
    for row, near in zip(table, neighbours, strict=True):
        if len(near) > 0:
            row.mul_(1 - eps_uniform - eps_near)
            row[list(near)] += eps_near / len(near)
        else:
            row.mul_(1 - eps_uniform)
    return table + eps_uniform / num_classes


def mixed_targets(labels: Tensor, table: Tensor) -> Tensor:
    """Each label's row of a table of targets, or a mixture of rows.

    Args:
        labels: Class indices [N], or distributions [N, K], by which the rows are mixed.
        table: The target of each class, [K, K].

    Returns:
        Distributions [N, K], of ``table``'s type, or of ``labels``' if they are distributions.
    """
    if labels.ndim == 1:
        return table[labels]
    with torch.autocast(labels.device.type, enabled=False):
        return labels @ table.to(labels)
