"""Statistics of the columns: curves, correlations, confusions, and the selection of classes to show."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr


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
    quartiles = [np.quantile(y[g], [0.25, 0.75]).tolist() for g in groups]
    return dict(
        x=[float(x[g].mean()) for g in groups],
        mean=[float(y[g].mean()) for g in groups],
        low=[low for low, _ in quartiles],
        high=[high for _, high in quartiles],
    )


def correlation(x: NDArray, y: NDArray) -> dict[str, float]:
    """Spearman's and Pearson's correlation; 0 if ``x`` or ``y`` is constant (our choice)."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict(spearman=0.0, pearson=0.0)
    x, y = x.astype(np.float64), y.astype(np.float64)
    return dict(spearman=float(spearmanr(x, y).statistic), pearson=float(pearsonr(x, y).statistic))


def summary(values: NDArray) -> dict[str, Any]:
    """The number of images, and the mean and standard deviation of their ``values``; None for no images."""
    if len(values) == 0:
        return dict(images=0, mean=None, std=None)
    return dict(images=len(values), mean=float(values.mean()), std=float(values.std()))


def near_share(
    off_mass: NDArray, near_mass: NDArray, prediction: NDArray, classes: NDArray, neighbours: Sequence[Sequence[int]]
) -> dict[str, Any]:
    r"""The share of the off-target mass :math:`1 - p_y` inside A(x), over images whose class has neighbours.

    Args:
        off_mass: [N].
        near_mass: [N].
        prediction: Predicted classes [N].
        classes: True classes [N].
        neighbours: A of each class, without itself.

    Returns:
        ``share`` of the mass, ``chance`` (the same for mass spread uniformly over all other classes), ``errors`` and
        ``errors_share`` (number of wrong predictions, and their share inside A(x); None without any), ``images``, and
        ``by_class``: index, share and chance of each class with neighbours and images.
    """
    sizes = np.array([len(near) for near in neighbours])
    chance = sizes / (len(sizes) - 1)
    applies = sizes[classes] > 0
    errors = np.flatnonzero(applies & (prediction != classes))
    inside = [prediction[i] in neighbours[classes[i]] for i in errors]
    off, near = (np.bincount(classes[applies], mass[applies], len(sizes)) for mass in (off_mass, near_mass))
    total = float(off.sum())
    return dict(
        images=int(applies.sum()),
        share=float(near.sum()) / total if total else None,
        chance=float(off @ chance) / total if total else None,
        errors=len(inside),
        errors_share=float(np.mean(inside)) if inside else None,
        by_class=[dict(index=c, share=near[c] / off[c], chance=chance[c]) for c in np.flatnonzero(off).tolist()],
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

    def contrast(c: int) -> tuple[bool, float]:
        small, large = extremes(norm, np.flatnonzero(classes == c), show)
        return len(small) == show, norm[large].mean() / max(norm[small].mean(), 1e-12)

    return sorted(np.unique(classes).tolist(), key=contrast, reverse=True)[:count]
