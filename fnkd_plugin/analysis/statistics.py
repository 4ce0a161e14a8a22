"""Statistics of the columns: curves, correlations, confusions, and the selection of classes to show."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fnkd_plugin.analysis.collect import Columns
from fnkd_plugin.analysis.indicators import auroc


def binned(x: NDArray, y: NDArray, bins: int = 20) -> dict[str, list[float]]:
    """Means of ``x`` and ``y``, and quartiles of ``y``, in bins of equal size ordered by ``x``.

    Args:
        x: [N].
        y: [N].
        bins: Maximum number of bins; fewer if a bin would have fewer than five samples.

    Returns:
        ``x``, ``mean``, ``low``, ``high``: one number per bin.
    """
    groups = np.array_split(np.argsort(x, kind='stable'), max(1, min(bins, len(x) // 5)))
    return dict(
        x=[float(x[g].mean()) for g in groups],
        mean=[float(y[g].mean()) for g in groups],
        low=[float(np.quantile(y[g], 0.25)) for g in groups],
        high=[float(np.quantile(y[g], 0.75)) for g in groups],
    )


def correlation(x: NDArray, y: NDArray) -> dict[str, float]:
    """Spearman's and Pearson's correlation; 0 if ``x`` or ``y`` is constant (our choice)."""
    from scipy.stats import pearsonr, spearmanr

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict(spearman=0.0, pearson=0.0)
    x, y = x.astype(np.float64), y.astype(np.float64)
    return dict(spearman=float(spearmanr(x, y).statistic), pearson=float(pearsonr(x, y).statistic))


def outcome(norm: NDArray, right: NDArray) -> dict[str, Any]:
    """Feature norms of right and wrong predictions: their number, mean and standard deviation."""
    found = {}
    for name, chosen in (('right', right), ('wrong', ~right)):
        values = norm[chosen]
        found[name] = dict(
            images=int(chosen.sum()),
            mean=float(values.mean()) if len(values) else None,
            std=float(values.std()) if len(values) else None,
        )
    return found


def error_detection(columns: Columns, right: NDArray) -> dict[str, dict[str, float]] | None:
    """``auroc`` and its ``standard_error`` of finding wrong predictions by a small norm, and by a large entropy.

    These indicators do not depend on the label. None if fewer than two predictions are wrong, or right.
    """
    if min(right.sum(), (~right).sum()) < 2:
        return None
    scores = {'norm': -columns['norm'], 'entropy': columns['entropy']}
    found = {name: auroc(values, ~right) for name, values in scores.items()}
    return {name: dict(auroc=area, standard_error=error) for name, (area, error) in found.items()}


def near_share(
    off_mass: NDArray, near_mass: NDArray, prediction: NDArray, classes: NDArray, neighbours: Sequence[Sequence[int]]
) -> dict[str, Any]:
    r"""The share of the off-target mass :math:`1 - p_y` inside A(x), over images whose class has neighbours.

    Args:
        off_mass: [N].
        near_mass: [N].
        prediction: Predicted classes [N].
        classes: True classes [N].
        neighbours: A of each class.

    Returns:
        ``share`` of the mass, ``chance`` (the same for mass spread uniformly over all other classes), ``errors`` and
        ``errors_share`` (number of wrong predictions, and their share inside A(x); None without any), ``images``, and
        ``by_class``: index, share and chance of each class with neighbours and images.
    """
    sizes = np.array([len(set(near) - {c}) for c, near in enumerate(neighbours)])
    chance = sizes / (len(neighbours) - 1)
    applies = sizes[classes] > 0
    wrong = applies & (prediction != classes)
    inside = [int(p) in neighbours[c] for p, c in zip(prediction[wrong], classes[wrong], strict=True)]
    total = float(off_mass[applies].sum())
    by_class = []
    for c in np.unique(classes[applies]):
        of_class = classes == c
        mass = float(off_mass[of_class].sum())
        if mass > 0:
            by_class.append(dict(index=int(c), share=float(near_mass[of_class].sum()) / mass, chance=float(chance[c])))
    return dict(
        images=int(applies.sum()),
        share=float(near_mass[applies].sum()) / total if total else None,
        chance=float((off_mass[applies] * chance[classes[applies]]).sum()) / total if total else None,
        errors=len(inside),
        errors_share=float(np.mean(inside)) if inside else None,
        by_class=by_class,
    )


def confused_pairs(prediction: NDArray, classes: NDArray, top: int = 12) -> list[dict[str, int]]:
    """The most frequent pairs of true and wrongly predicted class, with their counts."""
    wrong = prediction != classes
    pairs, counts = np.unique(np.stack([classes[wrong], prediction[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind='stable')[:top]
    return [dict(true=int(pairs[i, 0]), predicted=int(pairs[i, 1]), images=int(counts[i])) for i in order]


def extremes(norm: NDArray, members: NDArray, show: int) -> tuple[list[int], list[int]]:
    """The indices in ``members`` with the smallest norms, ascending, and the largest, descending."""
    order = members[np.argsort(norm[members], kind='stable')]
    show = min(show, max(1, len(order) // 2))
    return order[:show].tolist(), order[::-1][:show].tolist()


def contrasting_classes(norm: NDArray, classes: NDArray, count: int, show: int) -> list[int]:
    """The classes with the largest ratio between the means of their largest and smallest norms (our choice).

    Args:
        norm: [N].
        classes: [N].
        count: The number of classes.
        show: Images at either end; classes with fewer than twice as many come last.
    """
    found = []
    for c in np.unique(classes):
        small, large = extremes(norm, np.flatnonzero(classes == c), show)
        ratio = norm[large].mean() / max(norm[small].mean(), 1e-12)
        found.append((len(small) == show, float(ratio), int(c)))
    found.sort(key=lambda entry: (-entry[0], -entry[1], entry[2]))
    return [c for _, _, c in found[:count]]
