r"""Softened labels as functions of tensors; depends on torch only.

LSR, ALSR, KD and FNKD replace the one-hot label :math:`q` by another distribution. LSR and ALSR compute it from the
label (:func:`lsr_target`, :func:`alsr_target`). KD and FNKD compute it from a teacher's logits under a temperature
policy (:func:`scale_by_temperature`, :func:`scale_by_feature_norm`); :func:`soft_cross_entropy` compares it with the
student's. The compensation :math:`\eta` is what a method adds to :math:`q` (Eq. 1; ``*_compensation``);
:func:`denoised_target` is the resulting label.

Half-precision inputs are computed in fp32; fp64 stays fp64.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    'alsr_compensation',
    'alsr_target',
    'at_least_fp32',
    'denoised_target',
    'fnkd_compensation',
    'inverse_logit_std',
    'kd_compensation',
    'kd_target',
    'logit_std',
    'lsr_compensation',
    'lsr_target',
    'norm_scale',
    'pearson_correlation',
    'scale_about_origin',
    'scale_by_feature_norm',
    'scale_by_temperature',
    'soft_cross_entropy',
    'standardize',
]


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32 if it has half precision, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    r"""Cross-entropy between a teacher's and a student's softmax, mean over the batch.

    .. math:: \frac1N \sum_n w_n H(\sigma(v_n), \sigma(z_n)), \qquad H(a, b) = -\sum_k a_k \log b_k

    Its gradient with respect to :math:`z_n` is :math:`w_n (\sigma(z_n) - \sigma(v_n)) / N`. Source: the soft
    terms of Eq. 4 and Eq. 11 of the paper. On a GPU the losses compute it together with the scaling in one kernel
    (:func:`fnkd_plugin.losses.scaled_cross_entropy.scaled_cross_entropy`).

    Args:
        student_logits: :math:`z`, scaled by the temperature policy, [N, K].
        teacher_logits: :math:`v`, scaled by the same policy, [N, K]; not detached.
        weight: :math:`w_n \ge 0`, [N], or one for all.

    Returns:
        A scalar; with weight 1 >= the mean entropy of the teacher's distributions. fp32, or fp64 for fp64 inputs.
    """
    log_p, q = at_least_fp32(student_logits).log_softmax(dim=1), at_least_fp32(teacher_logits).softmax(dim=1)
    share = -1 / len(q) if len(q) else math.nan
    if isinstance(weight, Tensor):
        return (weight * (q * log_p).sum(dim=1)).sum() * share
    return (q * log_p).sum() * (weight * share)


def scale_about_origin(logits: Tensor, scale: Tensor | float, origin: Tensor | None = None) -> Tensor:
    r"""Logits scaled about those of the zero feature, :math:`z' = b + s (z - b)`; the form of every temperature policy.

    KD has :math:`s = 1/T` and :math:`b = 0`, FNKD :math:`s = \tau / \lVert f \rVert` and the bias.

    Args:
        logits: :math:`z`, [N, K].
        scale: :math:`s`, the inverse temperature of each sample, [N], or one for all.
        origin: :math:`b`, [K]; None for 0.

    Returns:
        :math:`z'`, [N, K], fp32, or fp64 if any input is. Equal to :math:`z` at :math:`s = 1`.
    """
    dtypes = [x.dtype for x in (logits, scale, origin) if isinstance(x, Tensor)]
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    s = scale.to(dtype).reshape(-1, 1) if isinstance(scale, Tensor) else scale
    z = logits.to(dtype)
    return z * s if origin is None else torch.lerp(origin.to(dtype), z, s)


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
    tau: float | Tensor,
    mode: str = 'normalize',
) -> Tensor:
    r"""Logits as if the penultimate feature had been rescaled to the norm :math:`\tau` (Eq. 10).

    With :math:`z = W f + b` and :math:`r = \lVert f \rVert_2`, the logits of the feature :math:`s f` are
    exactly

    .. math:: z' = (z - b) s + b, \qquad
        s = \begin{cases} \tau / r          & \text{normalize, Eq. 10} \\
                          \min(1, \tau / r) & \text{clip, the authors' code} \end{cases}

    so the bias is not scaled, as in the authors' code. At :math:`r = 0`, or where :math:`\tau / r` has no finite
    gradient, :math:`s = 1` in both modes (our choice: the paper's scale is infinite there, and all finite scales are
    equivalent since :math:`z - b = 0`).
    Gradient flows through the logits, the norm and the origin, unless the caller detaches them.

    Args:
        logits: :math:`z`, [N, K].
        feature_norm: :math:`r \ge 0`, [N].
        origin: :math:`b`, the logits of the zero feature, [K]; None for a layer without bias.
        tau: The norm to rescale to, > 0, in the unit of ``feature_norm``, a number or a scalar tensor. For
            :math:`\tau \to \infty` ``clip`` does not change the logits.
        mode: ``'normalize'`` or ``'clip'``.

    Returns:
        Rescaled logits [N, K], fp32 or fp64.

    Raises:
        ValueError: If ``mode`` is neither.
    """
    return scale_about_origin(logits, norm_scale(feature_norm, tau, mode), origin)


def norm_scale(feature_norm: Tensor, tau: float | Tensor, mode: str = 'normalize') -> Tensor:
    """The scale :math:`s` of :func:`scale_by_feature_norm`, the inverse of the sample's temperature, > 0, [N]."""
    if mode not in ('normalize', 'clip'):
        raise ValueError(f"mode is 'normalize' or 'clip', not {mode!r}")
    r = at_least_fp32(feature_norm)
    # Below tau eps^2, z - b is rounding noise, and the gradient of tau / r overflows.
    least = 1.0 if mode == 'clip' else torch.finfo(r.dtype).eps ** 2
    if isinstance(tau, Tensor):
        return tau / torch.where(r <= tau * least, tau, r)
    return tau / F.threshold(r, tau * least, tau)


def logit_std(logits: Tensor) -> Tensor:
    r"""Standard deviation of each sample's logits over the classes, :math:`\sqrt{\frac1K \sum_k (z_k - \bar z)^2}`.

    1 where it is 0 or its inverse has no finite gradient (our choice: equal logits have the same softmax at any
    temperature).

    Args:
        logits: [N, K].

    Returns:
        [N], > 0, fp32 or fp64. Gradient flows through it.
    """
    return _logit_variance(logits).sqrt()


def inverse_logit_std(logits: Tensor) -> Tensor:
    """1 / :func:`logit_std`, [N]."""
    return _logit_variance(logits).rsqrt()


def _logit_variance(logits: Tensor) -> Tensor:
    variance = at_least_fp32(logits).var(dim=1, correction=0)
    return F.threshold(variance, torch.finfo(variance.dtype).eps ** 2, 1.0)


def standardize(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Each sample's logits as z-scores over the classes, :math:`(z - \bar z) / (T \operatorname{std}(z))`.

    Since the softmax does not depend on the mean, this is :math:`z / T_n` with a temperature
    :math:`T_n = T \operatorname{std}(z_n)` for each sample. Invariant to shifts and positive scales of the logits.
    Source: Sun et al., *Logit Standardization in Knowledge Distillation*, CVPR 2024, algorithm 1.

    Args:
        logits: [N, K].
        temperature: The base temperature :math:`T > 0`.

    Returns:
        Logits [N, K] of mean 0 and standard deviation 1 / T for each sample (see :func:`logit_std` for equal
        ones), within :math:`\pm\sqrt{K - 1} / T`; fp32 or fp64.
    """
    z = at_least_fp32(logits)
    return (z - z.mean(dim=1, keepdim=True)) / (temperature * logit_std(z)[:, None])


def pearson_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation coefficient of each row of ``a`` with that of ``b``, for rows of any scale.

    Args:
        a: [N, K].
        b: [N, K].

    Returns:
        Coefficients in [-1, 1]; where a row is constant up to rounding, 1 if both are, else 0, with the gradient of a
        standard deviation as large as its values (our choice). [N], fp32 or fp64.
    """
    (a, a_varies), (b, b_varies) = _z_scores(a), _z_scores(b)
    return (a * b).mean(dim=1) + ~(a_varies | b_varies)


def _z_scores(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of mean 0 and standard deviation 1, or about 0 if constant up to rounding, and which are not, [N]."""
    x = at_least_fp32(x)
    finfo = torch.finfo(x.dtype)
    with torch.no_grad():
        largest = torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True).clamp_min(finfo.tiny)
    x = x / largest  # so that squares do not underflow, and rounding errors have one size
    noise = 4 * finfo.eps
    floor = noise / 1000
    scores, _, inverse_std = torch.native_layer_norm(x, x.shape[1:], None, None, floor**2)
    varies = inverse_std < 1 / noise
    # 1, or the inverse of the largest inverse_std, so that the gradient stays finite.
    return scores * (varies + floor), varies[:, 0]


def lsr_target(labels: Tensor, num_classes: int, eps: float) -> Tensor:
    r"""Label smoothing, :math:`(1 - \epsilon) q + \epsilon u` with :math:`u_k = 1/K` (Eq. 2).

    Args:
        labels: Class indices [N], or distributions [N, K] (mixup, CutMix).
        num_classes: :math:`K`.
        eps: :math:`0 \le \epsilon < 1`.

    Returns:
        Distributions [N, K], fp32 unless ``labels`` are distributions of another floating type.
    """
    return (1 - eps) * _distributions(labels, num_classes) + eps / num_classes


def alsr_target(labels: Tensor, neighbours: Sequence[Sequence[int]], eps_uniform: float, eps_near: float) -> Tensor:
    r"""Anisotropic label smoothing, :math:`(1-\epsilon_1-\epsilon_2) q + \epsilon_1 u + \epsilon_2 \rho` (Eq. 3).

    :math:`\rho_k = 1/|A|` on the classes near the true one. A class without neighbours gets LSR
    with :math:`\epsilon_1` (our choice).

    Args:
        labels: Class indices [N], or distributions [N, K], whose targets are mixed alike.
        neighbours: For each of the K classes the indices of its near classes :math:`A`.
        eps_uniform: :math:`\epsilon_1 \ge 0`.
        eps_near: :math:`\epsilon_2 \ge 0`, :math:`\epsilon_1 + \epsilon_2 < 1`.

    Returns:
        Distributions [N, K], fp32 unless ``labels`` are distributions of another floating type.
    """
    return Neighbours(neighbours).to(labels.device).target(labels, eps_uniform, eps_near)


class Neighbours(nn.Module):
    """Near classes as padded index lists, without a K x K table.

    Args:
        neighbours: For each of the K classes the indices of its near classes.
    """

    index: Tensor
    count: Tensor

    def __init__(self, neighbours: Sequence[Sequence[int]]) -> None:
        super().__init__()
        num_classes, longest = len(neighbours), max(map(len, neighbours), default=0)
        # Padded with class K, which is cut off in the end.
        rows = [[*near, *[num_classes] * (longest - len(near))] for near in neighbours]
        # Not persistent: a student's checkpoint has the same keys under any loss.
        self.register_buffer('index', torch.tensor(rows, dtype=torch.long).view(num_classes, longest), persistent=False)
        self.register_buffer('count', torch.tensor([len(near) for near in neighbours]), persistent=False)

    def target(self, labels: Tensor, eps_uniform: float, eps_near: float) -> Tensor:
        """The targets of :func:`alsr_target`, [N, K]."""
        q = _distributions(labels, len(self.count))
        kept = 1 - eps_uniform - torch.where(self.count > 0, eps_near, 0.0).to(q)
        return q * kept + eps_uniform / len(self.count) + eps_near * self.near(labels).to(q)

    def near(self, labels: Tensor) -> Tensor:
        r""":math:`\rho`, uniform on the near classes of each label, 0 for a class without any, [N, K]."""
        share = 1 / self.count.clamp_min(1)
        if labels.ndim == 1:
            found = share.new_zeros(len(labels), len(self.count) + 1)
            each = self.index[labels]
            return found.scatter(1, each, share[labels, None].expand_as(each))[:, :-1]
        found = labels.new_zeros(len(labels), len(self.count) + 1, dtype=torch.promote_types(labels.dtype, share.dtype))
        for column in self.index.T:  # column by column, to avoid N x K x longest elements
            found.index_add_(1, column, labels * share.to(found))
        return found[:, :-1]


def kd_target(labels: Tensor, q_kd: Tensor, alpha: float) -> Tensor:
    r"""KD at :math:`T = 1` as a label, :math:`q_t = (1-\alpha) q + \alpha q_{kd}` (Eq. 7).

    Cross-entropy with it equals KD's loss (Eq. 6).

    Args:
        labels: Class indices [N], or distributions [N, K].
        q_kd: The teacher's distributions :math:`\sigma(v)`, [N, K].
        alpha: :math:`0 \le \alpha \le 1`.

    Returns:
        Distributions [N, K].
    """
    return (1 - alpha) * _distributions(labels, q_kd.shape[1], q_kd.dtype) + alpha * q_kd


def lsr_compensation(labels: Tensor, num_classes: int, eps: float) -> Tensor:
    r"""What LSR adds to a label, :math:`\eta = \frac{\epsilon}{1-\epsilon} u` (Eq. 1 and 2), equal for all classes.

    Args:
        labels: Class indices [N]; only N is used.
        num_classes: :math:`K`.
        eps: :math:`0 \le \epsilon < 1`.

    Returns:
        :math:`\eta \ge 0`, [N, K], fp32. Its sum over the classes is :math:`\epsilon / (1-\epsilon)`.
    """
    return torch.full((len(labels), num_classes), eps / (1 - eps) / num_classes, device=labels.device)


def alsr_compensation(
    labels: Tensor, neighbours: Sequence[Sequence[int]], eps_uniform: float, eps_near: float
) -> Tensor:
    r"""What ALSR adds, :math:`\eta = (\epsilon_1 u + \epsilon_2 \rho) / (1-\epsilon_1-\epsilon_2)` (Eq. 1 and 3).

    A class without neighbours gets that of LSR with :math:`\epsilon_1`.

    Args:
        labels: Class indices [N].
        neighbours: See :func:`alsr_target`.
        eps_uniform: :math:`\epsilon_1`.
        eps_near: :math:`\epsilon_2`.

    Returns:
        :math:`\eta \ge 0`, [N, K], fp32.
    """
    near = Neighbours(neighbours).to(labels.device)
    kept = 1 - eps_uniform - torch.where(near.count > 0, eps_near, 0.0)[labels, None]
    return (eps_uniform / len(neighbours) + eps_near * near.near(labels)) / kept


def kd_compensation(q_kd: Tensor, alpha: float) -> Tensor:
    r"""What KD adds, :math:`\eta = \frac{\alpha}{1-\alpha} q_{kd}` (Eq. 7, exact for :math:`T = 1`).

    Args:
        q_kd: The teacher's distributions :math:`\sigma(v/T)`, [N, K].
        alpha: :math:`0 \le \alpha < 1`.

    Returns:
        :math:`\eta \ge 0`, [N, K].
    """
    return alpha / (1 - alpha) * q_kd


def fnkd_compensation(
    q_fn: Tensor, feature_norm: Tensor, tau: float, loss_weight: float, mode: str = 'normalize'
) -> Tensor:
    r"""What FNKD adds, :math:`\eta = \lambda^2 s \, q_{fn}` with :math:`s = \tau / \lVert f_s \rVert` (our definition).

    FNKD is not a cross-entropy with one label. But in its gradient (Eq. 12),
    :math:`p - q + \lambda^2 s (p_{fn} - q_{fn})`, the labels occur only as :math:`-(q + \eta)`, as in that of KD. The
    weight of the teacher's distribution is larger for a smaller feature norm.

    Args:
        q_fn: The teacher's distributions (Eq. 10), [N, K].
        feature_norm: The student's :math:`\lVert f_s \rVert`, [N].
        tau: See :func:`scale_by_feature_norm`.
        loss_weight: :math:`\lambda^2 \ge 0`.
        mode: See :func:`scale_by_feature_norm`.

    Returns:
        :math:`\eta \ge 0`, [N, K].
    """
    return loss_weight * norm_scale(feature_norm, tau, mode)[:, None] * q_fn


def denoised_target(labels: Tensor, compensation: Tensor) -> Tensor:
    r"""The label with its compensation, :math:`\hat q = (q + \eta) / (1 + \sum_k \eta_k)` (Eq. 1).

    Eq. 1 is normalised here to give a distribution. With the compensations above it equals
    :func:`lsr_target`, :func:`alsr_target` and :func:`kd_target`.

    Args:
        labels: Class indices [N], or distributions [N, K].
        compensation: :math:`\eta \ge 0`, [N, K].

    Returns:
        Distributions [N, K].
    """
    noisy = _distributions(labels, compensation.shape[1], compensation.dtype)
    return (noisy + compensation) / (1 + compensation.sum(dim=1, keepdim=True))


def _distributions(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Labels as distributions; one-hot labels have ``dtype``, or fp32 if that is wider."""
    if labels.ndim == 2:
        return labels if labels.is_floating_point() else labels.to(dtype)
    return F.one_hot(labels, num_classes).to(torch.promote_types(dtype, torch.float32))
