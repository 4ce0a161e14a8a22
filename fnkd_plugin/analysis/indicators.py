"""Comparison of indicators of wrong labels: AUROC with its standard error, precision, and a verdict."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

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

    A small norm is the paper's indicator; a large loss, a small margin and a large entropy are the standard ones.
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
    ours, others = scores[positive], scores[~positive]
    ranks = rankdata(np.concatenate([ours, others]))
    above = (ranks[: len(ours)] - rankdata(ours)) / len(others)
    below = 1 - (ranks[len(ours) :] - rankdata(others)) / len(ours)
    return above, below


def mean_and_error(above: NDArray, below: NDArray) -> tuple[float, float]:
    """An AUROC, or a difference of two, and its standard error (DeLong), from (differences of) placements."""
    return float(above.mean()), math.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))


def precision_at(scores: NDArray, positive: NDArray, k: int) -> float:
    """The share of positives among the ``k`` largest scores; ties are broken by position."""
    return float(positive[np.argsort(-scores, kind='stable')[:k]].mean())


def audit(scores: dict[str, NDArray], wrong: NDArray) -> dict[str, Any]:
    """Evaluate how well each indicator finds what is known to be wrong, labels or predictions.

    Args:
        scores: Suspicion [N] by indicator.
        wrong: Whether each is wrong, booleans [N].

    Returns:
        ``wrong`` and ``images`` (counts), by indicator ``auroc`` with its 95 % interval ``interval`` (DeLong) and
        ``precision`` at k = 20, 100 and the number of wrong ones, the ``best`` indicator (other than ``norm``), and,
        where ``norm`` is among the scores, ``norm_minus_best``, the difference of AUROCs with its 95 % interval.
        ``chance`` is the share of wrong ones, the precision of a random order.

    Raises:
        SetupError: If fewer than two are wrong, or fewer than two right.
    """
    check_auditable(wrong)
    count = int(wrong.sum())
    ks = sorted({k for k in (20, 100, count) if k <= len(wrong)})
    placed = {name: placements(values, wrong) for name, values in scores.items()}
    found: dict[str, Any] = {}
    for name, values in scores.items():
        area, error = mean_and_error(*placed[name])
        interval = [max(0, area - _Z95 * error), min(1, area + _Z95 * error)]
        precision = {str(k): precision_at(values, wrong, k) for k in ks}
        found[name] = dict(auroc=area, interval=interval, precision=precision)
    best = max((name for name in scores if name != 'norm'), key=lambda name: found[name]['auroc'])
    audited = dict(images=len(wrong), wrong=count, chance=count / len(wrong), indicators=found, best=best)
    if 'norm' in scores:
        difference, error = mean_and_error(*(a - b for a, b in zip(placed['norm'], placed[best], strict=True)))
        interval = [difference - _Z95 * error, difference + _Z95 * error]
        audited['norm_minus_best'] = dict(difference=difference, interval=interval)
    return audited


def is_auditable(wrong: NDArray) -> bool:
    """Whether there are enough wrong and right ones for an AUROC with a standard error: two each."""
    return 2 <= wrong.sum() <= len(wrong) - 2


def check_auditable(wrong: NDArray) -> None:
    """Raise a :class:`SetupError` unless the labels are auditable."""
    if not is_auditable(wrong):
        raise SetupError(
            f'analysis: {int(wrong.sum())} of {len(wrong)} labels are wrong; an audit needs at least two wrong and two '
            'right ones. Choose another rate for --flip, or more images.'
        )


def shown(found: dict[str, Any]) -> str:
    """An indicator's AUROC with its interval."""
    return '{:.3f} [{:.3f}, {:.3f}]'.format(found['auroc'], *found['interval'])


def verdict(audited: dict[str, Any]) -> str:
    """One sentence on whether ‖f‖ is the better indicator, computed from the result of :func:`audit`.

    Without ‖f‖ among the indicators (labels flipped after training) it describes only the best one.
    """
    best, found = audited['best'], audited['indicators']
    if 'norm' not in found:
        return (
            f'{best} finds the {audited["wrong"]} wrong labels with an AUROC of {shown(found[best])}. They were '
            'flipped after training; ‖f‖ and entropy do not depend on the label and cannot find them.'
        )
    difference = audited['norm_minus_best']
    low, high = difference['interval']
    to_chance, to_best = _compared(found['norm']['interval'], 0.5), _compared([low, high], 0)
    return (
        f'‖f‖ finds the {audited["wrong"]} wrong labels with an AUROC of {shown(found["norm"])}, {to_chance} chance, '
        f'and {to_best} {best}, the best of the others (AUROC {found[best]["auroc"]:.3f}; difference '
        f'{difference["difference"]:+.3f} [{low:+.3f}, {high:+.3f}]).'
    )


def _compared(interval: list[float], reference: float) -> str:
    low, high = interval
    if low > reference:
        return 'better than'
    return 'worse than' if high < reference else 'not significantly different from'
