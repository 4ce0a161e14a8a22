r"""A teacher's k largest logits, and moments of the others (the tail) that suffice for any temperature policy.

With :math:`y = v - b` a policy maps a logit to :math:`\alpha y + \beta b`: KD has :math:`\alpha = \beta = 1/T`, FNKD
:math:`\alpha = s_n, \beta = 1`. The scaled logits of the :math:`n = K - k` tail classes have a mean :math:`m` and a
variance :math:`\sigma^2`, which follow from five moments of :math:`y` and :math:`b` for any policy. The sum of their
exponentials is approximated by that of normal variables, :math:`n \exp(m + \sigma^2 / 2)`, and distributed uniformly
over the tail classes (both our choice).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin.functional import at_least_fp32
from fnkd_plugin.prediction import Prediction, SparsePrediction


def compress(logits: Tensor, origin: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce logits to the k largest and the moments of the tail.

    Args:
        logits: :math:`v`, [N, K].
        origin: :math:`b`, [K], or None for 0.
        k: In [1, K).

    Returns:
        The k largest logits in descending order and their classes, [N, k] each; the mean and variance of y and its
        covariance with b over the tail, [N, 3].
    """
    values, classes = logits.topk(k, dim=1)
    tail = torch.ones_like(logits, dtype=torch.bool).scatter(1, classes, False)
    y = logits if origin is None else logits - origin
    b = torch.zeros_like(y) if origin is None else origin.expand_as(y)
    y, b = (x[tail].view(len(x), -1).double() for x in (y, b))
    dy, db = y - y.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    moments = torch.stack([y.mean(1), (dy * dy).mean(1), (dy * db).mean(1)], dim=1)
    return values, classes, moments.to(logits.dtype)


def log_target(teacher: SparsePrediction, policy: Callable[[Prediction], Tensor]) -> Tensor:
    """Log-probabilities of the top classes, and of the tail as a whole, under a policy, [N, k + 1].

    Args:
        teacher: The teacher's prediction.
        policy: Maps a prediction to its scaled logits; elementwise in the logits.
    """
    values, norm, origin = teacher
    count, k = values.shape
    b = values.new_zeros(teacher.num_classes) if origin is None else at_least_fp32(origin)
    one, zero = values.new_ones(count, 1), values.new_zeros(count, 1)
    of_top = b[teacher.classes]
    # Two additional logits give alpha (y = 1, b = 0) and beta (y = 0, b = 1).
    scaled = policy(Prediction(torch.cat([values, one, one], 1), norm, torch.cat([of_top, zero, one], 1)))
    top, alpha, beta = scaled[:, :k], scaled[:, k], scaled[:, k + 1]
    n = teacher.num_classes - k
    mean_b = (b.sum() - of_top.sum(1)) / n
    var_b = ((b - b.mean()).square().sum() - (of_top - b.mean()).square().sum(1)) / n - (mean_b - b.mean()).square()
    mean_y, var_y, covariance = teacher.tail.unbind(1)
    mean = alpha * mean_y + beta * mean_b
    variance = alpha.square() * var_y + 2 * alpha * beta * covariance + beta.square() * var_b.clamp_min(0)
    tail = mean + variance / 2 + math.log(n)
    return F.log_softmax(torch.cat([top, tail[:, None]], 1), dim=1)


def sparse_cross_entropy(
    student_logits: Tensor, log_target: Tensor, classes: Tensor, weight: Tensor | float = 1.0
) -> Tensor:
    r"""Cross-entropy with a target given by its top classes and the mass of the tail.

    .. math:: -\frac1N \sum_n w_n \Big( \sum_{k \in \text{top}} q_k \log p_k
        + \frac{Q}{K - |\text{top}|} \sum_{k \notin \text{top}} \log p_k \Big)

    Does not allocate a target [N, K].

    Args:
        student_logits: Logits scaled by the policy, [N, K].
        log_target: The result of :func:`log_target`, [N, k + 1].
        classes: The top classes, [N, k].
        weight: :math:`w_n \ge 0`, [N], or one for all.

    Returns:
        A scalar, fp32 or fp64.
    """
    log_p = F.log_softmax(at_least_fp32(student_logits), dim=1)
    of_top = log_p.gather(1, classes)
    q = log_target.exp()
    even = q[:, -1] / (log_p.shape[1] - classes.shape[1])
    each = (q[:, :-1] * of_top).sum(1) + even * (log_p.sum(1) - of_top.sum(1))
    return -(weight * each).mean()
