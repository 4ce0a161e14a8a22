"""The diagrams of the report, as SVG data URIs."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

RIGHT, WRONG, INK, GREY = '#5b8fb9', '#d1495b', '#22262b', '#7a7f87'
KD, FNKD, LSR, ALSR = '#2f7fb8', '#1d9a6c', '#c58b2a', '#8e5ea2'
STYLE = {
    'font.size': 10.5,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#9aa0a6',
    'axes.axisbelow': True,
    'axes.grid': True,
    'grid.color': '#e6e8eb',
    'text.color': INK,
    'legend.frameon': False,
    'svg.hashsalt': 'fnkd_plugin',
}

Diagrams = dict[str, str]
Curve = Mapping[str, Sequence[float]]


@contextmanager
def _axis(found: Diagrams, name: str, xlabel: str, ylabel: str = '', height: float = 3.5) -> Iterator[Any]:
    """An axis to draw on; its figure is added to ``found``."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, height), layout='constrained')
        axis = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
        yield axis
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
        text = StringIO()
        figure.savefig(text, format='svg', metadata={'Date': None})
    found[name] = 'data:image/svg+xml;base64,' + base64.b64encode(text.getvalue().encode()).decode()


def add_norms(found: Diagrams, name: str, norm: NDArray, right: NDArray) -> None:
    """Add the diagram of :func:`draw_norms`."""
    with _axis(found, name, 'feature norm ‖f‖', 'share of right / wrong predictions, %') as axis:
        draw_norms(axis, norm, right)


def draw_norms(axis: Any, norm: NDArray, right: NDArray) -> None:
    """Histogram of the norms of right predictions (upwards) and wrong ones (downwards), each normalised to 100 %."""
    bins = np.histogram_bin_edges(norm, 40)
    for kind, values, color, sign in (('right', norm[right], RIGHT, 100), ('wrong', norm[~right], WRONG, -100)):
        if len(values):
            share = sign * np.histogram(values, bins)[0] / len(values)
            label = f'{kind}: {len(values):,}, mean {values.mean():.3g}'
            axis.stairs(share, bins, fill=True, color=color, alpha=0.85, label=label)
            axis.axvline(values.mean(), 0.5, 0.5 + sign / 200, color=INK, ls='--')
    limit = max(map(abs, axis.get_ylim()))
    axis.set_ylim(-limit, limit)
    axis.yaxis.set_major_formatter(lambda value, _: f'{abs(value):g}')


def add_curves(found: Diagrams, name: str, ylabel: str, curves: Mapping[str, tuple[Curve, str]]) -> None:
    """Binned means over the norm with interquartile ranges; curve and colour by label."""
    with _axis(found, name, 'feature norm ‖f‖', ylabel) as axis:
        for label, (curve, color) in curves.items():
            axis.fill_between(curve['x'], curve['low'], curve['high'], color=color, alpha=0.16, lw=0)
            axis.plot(curve['x'], curve['mean'], color=color, marker='o', ms=4, label=label)


def add_histogram(
    found: Diagrams, name: str, labels: tuple[str, str], values: Sequence[float] | NDArray, fill: str, **line: Any
) -> None:
    """A histogram with one vertical line (``x``, ``label``, ``color``) for comparison."""
    with _axis(found, name, *labels) as axis:
        axis.hist(values, 40, color=fill, alpha=0.85)
        axis.axvline(lw=2, **line)


def add_near_shares(found: Diagrams, name: str, shares: Mapping[str, Mapping[str, Any]]) -> None:
    """The share of off-target mass and of errors inside A(x) for each model, and by chance."""
    rows: list[tuple[str, float, str]] = []
    for model, share in shares.items():
        rows.append((f'{model}: off-target mass', share['share'] or 0, ALSR))
        if share['errors_share'] is not None:
            rows.append((f'{model}: wrong predictions', share['errors_share'], WRONG))
    rows.append(('chance (mass spread evenly)', next(iter(shares.values()))['chance'] or 0, GREY))
    texts, values, colors = zip(*rows, strict=True)
    with _axis(found, name, 'share inside A(x), %', height=0.9 + 0.52 * len(rows)) as axis:
        bars = axis.barh(texts, [100 * value for value in values], color=colors, height=0.62)
        axis.bar_label(bars, fmt='%.1f', padding=5, weight='bold')
        axis.invert_yaxis()
        axis.grid(axis='y', visible=False)
        axis.margins(x=0.14)


def add_aurocs(found: Diagrams, name: str, audits: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """The AUROC of each indicator with its interval, one row per audit and indicator."""
    colors = {'norm': FNKD, 'loss': WRONG, 'margin': LSR, 'entropy': KD}
    rows = [
        (f'{names[key]}: {indicator["auroc"]:.3f}\n({audit})', indicator, colors[key])
        for audit, audited in audits.items()
        for key, indicator in audited['indicators'].items()
    ]
    with _axis(found, name, 'AUROC, 95 % interval; chance is 0.5', height=1.0 + 0.42 * len(rows)) as axis:
        for place, (_, indicator, color) in enumerate(rows):
            axis.plot(indicator['interval'], [place, place], color=color, lw=2.5)
            axis.plot(indicator['auroc'], place, 'o', color=color)
        axis.axvline(0.5, color=GREY, lw=1, ls='--')
        axis.set_yticks(range(len(rows)), [text for text, _, _ in rows], size=9)
        axis.invert_yaxis()
        axis.grid(axis='y', visible=False)
