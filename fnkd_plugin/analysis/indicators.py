"""Comparison of indicators of wrong labels: AUROC with its standard error, precision, and a verdict."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fnkd_plugin.analysis.collect import Columns
from fnkd_plugin.errors import SetupError

# By name, the meaning of a high score.
INDICATORS = {
    'norm': 'small feature norm ‖f‖',
    'loss': 'large cross-entropy',
    'margin': "small margin of the label's logit",
    'entropy': 'large entropy of the prediction',
}
LABEL_BLIND = ('norm', 'entropy')
"""Indicators that do not depend on the label, and so cannot find labels flipped after training."""
_Z95 = 1.959964


def suspicion(columns: Columns, labeling: str) -> dict[str, NDArray]:
    """Scores [N] of each indicator, larger for labels that are more likely wrong.

    A small norm is the paper's indicator; a large loss, a small margin and a large entropy are the standard ones. Those
    of :data:`LABEL_BLIND` do not depend on the label.
    """
    return {
        'norm': -columns['norm'],
        'loss': columns[f'loss/{labeling}'],
        'margin': -columns[f'margin/{labeling}'],
        'entropy': columns['entropy'],
    }


def placements(scores: NDArray, positive: NDArray) -> tuple[NDArray, NDArray]:
    """For each positive the share of negatives below it, and for each negative the share of positives above it.

    The mean of both is the AUROC; ties count half. Their variances and covariances give those of AUROCs
    (DeLong, DeLong and Clarke-Pearson, Biometrics 1988).

    Args:
        scores: [N].
        positive: Booleans [N].

    Returns:
        The shares for the positives [P] and for the negatives [N - P].
    """
    from scipy.stats import rankdata

    ours, others = scores[positive], scores[~positive]
    ranks = rankdata(np.concatenate([ours, others]))
    above = (ranks[: len(ours)] - rankdata(ours)) / len(others)
    below = 1 - (ranks[len(ours) :] - rankdata(others)) / len(ours)
    return above, below


def auroc(scores: NDArray, positive: NDArray) -> tuple[float, float]:
    """The area under the ROC curve and its standard error (DeLong)."""
    above, below = placements(scores, positive)
    return float(above.mean()), _standard_error(above, below)


def auroc_difference(a: NDArray, b: NDArray, positive: NDArray) -> tuple[float, float]:
    """AUROC of ``a`` minus that of ``b`` on the same samples, and its standard error (DeLong, paired)."""
    (above_a, below_a), (above_b, below_b) = placements(a, positive), placements(b, positive)
    above, below = above_a - above_b, below_a - below_b
    return float(above.mean()), _standard_error(above, below)


def _standard_error(above: NDArray, below: NDArray) -> float:
    return math.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))


def precision_at(scores: NDArray, positive: NDArray, k: int) -> float:
    """The share of positives among the ``k`` largest scores; ties are broken by position."""
    return float(positive[np.argsort(-scores, kind='stable')[:k]].mean())


def audit(scores: dict[str, NDArray], wrong: NDArray) -> dict[str, Any]:
    """Evaluate how well each indicator finds labels that are known to be wrong.

    Args:
        scores: Suspicion [N] by indicator.
        wrong: Whether each label is wrong, booleans [N].

    Returns:
        ``wrong`` and ``images`` (counts), by indicator ``auroc`` with its 95 % interval ``interval`` (DeLong) and
        ``precision`` at k = 20, 100 and the number of wrong labels, the ``best`` indicator (other than ``norm``), and,
        where ``norm`` is among the scores, ``norm_minus_best``, the difference of AUROCs with its 95 % interval.
        ``chance`` is the share of wrong labels, the precision of a random order.

    Raises:
        SetupError: If fewer than two labels are wrong, or fewer than two right.
    """
    check_auditable(wrong)
    count = int(wrong.sum())
    ks = sorted({k for k in (20, 100, count) if k <= len(wrong)})
    found: dict[str, Any] = {}
    for name, values in scores.items():
        area, error = auroc(values, wrong)
        precision = {str(k): precision_at(values, wrong, k) for k in ks}
        found[name] = dict(auroc=area, interval=_interval(area, error, 0, 1), precision=precision)
    best = max((name for name in scores if name != 'norm'), key=lambda name: found[name]['auroc'])
    audited = dict(images=len(wrong), wrong=count, chance=count / len(wrong), indicators=found, best=best)
    if 'norm' in scores:
        difference, error = auroc_difference(scores['norm'], scores[best], wrong)
        audited['norm_minus_best'] = dict(difference=difference, interval=_interval(difference, error, -1, 1))
    return audited


def check_auditable(wrong: NDArray) -> None:
    """Check that there are enough wrong and right labels for an AUROC with a standard error.

    Raises:
        SetupError: If fewer than two labels are wrong, or fewer than two right.
    """
    count = int(wrong.sum())
    if min(count, len(wrong) - count) < 2:
        raise SetupError(
            f'analysis: {count} of {len(wrong)} labels are wrong; an audit needs at least two wrong and two right '
            'ones. Choose another rate for --flip, or more images.'
        )


def _interval(value: float, error: float, low: float, high: float) -> list[float]:
    return [max(low, value - _Z95 * error), min(high, value + _Z95 * error)]


def verdict(audited: dict[str, Any]) -> str:
    """One sentence on whether ‖f‖ is the better indicator, computed from the result of :func:`audit`.

    Without ‖f‖ among the indicators (labels flipped after training) it describes only the best one.
    """
    best = audited['best']
    if 'norm' not in audited['indicators']:
        found = audited['indicators'][best]
        return (
            f'{best} finds the {audited["wrong"]} wrong labels with an AUROC of {found["auroc"]:.3f} '
            '[{:.3f}, {:.3f}]. '.format(*found['interval'])
            + 'They were flipped after training; ‖f‖ and entropy do not depend on the label and cannot find them.'
        )
    norm = audited['indicators']['norm']
    (low, high), difference = audited['norm_minus_best']['interval'], audited['norm_minus_best']['difference']
    if low > 0:
        compared = f'better than {best}, the best of the others, by {difference:.3f} [{low:.3f}, {high:.3f}]'
    elif high < 0:
        compared = f'worse than {best}, the best of the others, by {-difference:.3f} [{-high:.3f}, {-low:.3f}]'
    else:
        span = f'[{low:.3f}, {high:.3f}]'
        compared = f'not significantly different from {best}, the best of the others ({difference:+.3f} {span})'
    if norm['interval'][0] > 0.5:
        chance = 'better than chance'
    elif norm['interval'][1] < 0.5:
        chance = 'worse than chance (here wrong labels have large norms)'
    else:
        chance = 'not significantly different from chance'
    interval = '[{:.3f}, {:.3f}]'.format(*norm['interval'])
    return (
        f'‖f‖ finds the {audited["wrong"]} wrong labels with an AUROC of {norm["auroc"]:.3f} {interval}, {chance}, and '
        f'{compared} (AUROC {audited["indicators"][best]["auroc"]:.3f}).'
    )
