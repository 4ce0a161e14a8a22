"""The diagrams of the report, as SVG data URIs."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

RIGHT, WRONG, INK, GREY = '#5b8fb9', '#d1495b', '#22262b', '#7a7f87'
KD, FNKD, LSR, ALSR = '#2f7fb8', '#1d9a6c', '#c58b2a', '#8e5ea2'
_STYLE = {
    'font.family': 'DejaVu Sans',
    'font.size': 10.5,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#9aa0a6',
    'axes.axisbelow': True,
    'axes.grid': True,
    'grid.color': '#e6e8eb',
    'xtick.color': '#5f6368',
    'ytick.color': '#5f6368',
    'text.color': INK,
    'axes.labelcolor': INK,
    'legend.frameon': False,
    'svg.hashsalt': 'fnkd_plugin',
}


class _Panel:
    def __init__(self, axis: Any) -> None:
        self.axis = axis
        self.uri = ''


@contextmanager
def _panel(width: float = 5.4, height: float = 3.5) -> Iterator[_Panel]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("analysis: diagrams need matplotlib; pip install 'fnkd_plugin[tools]'.") from error
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        panel = _Panel(figure.add_subplot())
        yield panel
        text = StringIO()
        figure.savefig(text, format='svg', metadata={'Date': None})
    panel.uri = 'data:image/svg+xml;base64,' + base64.b64encode(text.getvalue().encode()).decode()


def norm_histogram(norm: NDArray, right: NDArray) -> str:
    """Histogram of the norms of right predictions (upwards) and wrong ones (downwards), each normalised to 100 %."""
    bins = np.histogram_bin_edges(norm, 40)
    with _panel() as panel:
        axis, top = panel.axis, 0.0
        for name, chosen, color, sign in (('right', right, RIGHT, 1), ('wrong', ~right, WRONG, -1)):
            if not chosen.any():
                continue
            share = np.histogram(norm[chosen], bins)[0] / chosen.sum() * 100
            top = max(top, share.max())
            axis.stairs(sign * share, bins, fill=True, color=color, alpha=0.85)
            mean = norm[chosen].mean()
            axis.plot([mean, mean], [0, sign * share.max() * 1.08], color=INK, lw=1.5)
            axis.annotate(
                f'{name}: {chosen.sum():,}\nmean {mean:.3g}',
                (0.99, 0.5 + sign * 0.4),
                xycoords='axes fraction',
                ha='right',
                va='center',
                color=color,
                weight='bold',
            )
        axis.axhline(0, color=INK, lw=0.8)
        axis.set_ylim(-1.2 * top, 1.2 * top)
        axis.yaxis.set_major_formatter(lambda value, _: f'{abs(value):g}')
        axis.set_xlabel('feature norm ‖f‖')
        axis.set_ylabel('share of right / wrong predictions, %')
    return panel.uri


def curve(binned: dict[str, list[float]], ylabel: str, color: str, note: str) -> str:
    """A binned mean over the norm, with the interquartile range."""
    with _panel() as panel:
        panel.axis.fill_between(binned['x'], binned['low'], binned['high'], color=color, alpha=0.16, lw=0)
        panel.axis.plot(binned['x'], binned['mean'], color=color, lw=2, marker='o', ms=4)
        panel.axis.annotate(note, (0.98, 0.97), xycoords='axes fraction', ha='right', va='top', color=color)
        panel.axis.margins(y=0.18)
        panel.axis.set_xlabel('feature norm ‖f‖')
        panel.axis.set_ylabel(ylabel)
    return panel.uri


def two_curves(kd: dict[str, list[float]], fnkd: dict[str, list[float]], ylabel: str, labels: tuple[str, str]) -> str:
    """The soft labels of KD and FNKD over the norm."""
    with _panel() as panel:
        for binned, color, label in ((kd, KD, labels[0]), (fnkd, FNKD, labels[1])):
            panel.axis.fill_between(binned['x'], binned['low'], binned['high'], color=color, alpha=0.16, lw=0)
            panel.axis.plot(binned['x'], binned['mean'], color=color, lw=2, marker='o', ms=4, label=label)
        panel.axis.set_xlabel('feature norm ‖f‖ of the soft labels')
        panel.axis.set_ylabel(ylabel)
        panel.axis.legend(loc='best')
    return panel.uri


def temperatures(effective: NDArray, temperature: float) -> str:
    """Histogram of the effective temperatures ‖f‖/τ of FNKD, with the temperature of KD."""
    with _panel() as panel:
        axis = panel.axis
        axis.hist(effective, 40, color=FNKD, alpha=0.85)
        low, high = axis.get_xlim()
        axis.set_xlim(min(low, temperature * 0.97), max(high, temperature * 1.03))
        axis.set_ylim(0, axis.get_ylim()[1] * 1.18)
        axis.axvline(temperature, color=KD, lw=2)
        axis.annotate(
            f'KD: T = {temperature:g}',
            (temperature, 0.98),
            (-6 if temperature > (low + high) / 2 else 6, 0),
            xycoords=('data', 'axes fraction'),
            textcoords='offset points',
            ha='right' if temperature > (low + high) / 2 else 'left',
            va='top',
            color=KD,
            weight='bold',
        )
        axis.set_xlabel('effective temperature ‖f‖/τ of FNKD')
        axis.set_ylabel('images')
    return panel.uri


def near_shares(shares: dict[str, dict[str, Any]]) -> str:
    """The share of off-target mass and of errors inside A(x) for each model, and by chance."""
    rows: list[tuple[str, float, str]] = []
    for name, found in shares.items():
        rows.append((f'{name}: off-target mass', found['share'] or 0.0, ALSR))
        if found['errors_share'] is not None:
            rows.append((f'{name}: wrong predictions', found['errors_share'], WRONG))
    rows.append(('chance (mass spread evenly)', next(iter(shares.values()))['chance'] or 0.0, GREY))
    with _panel(height=0.9 + 0.52 * len(rows)) as panel:
        _bars(panel.axis, rows)
        panel.axis.set_xlabel('share inside A(x), %')
    return panel.uri


def _bars(axis: Any, rows: Sequence[tuple[str, float, str]]) -> None:
    for place, (_, value, color) in enumerate(rows):
        axis.barh(place, 100 * value, color=color, height=0.62)
        axis.annotate(
            f'{100 * value:.1f}', (100 * value, place), (5, 0), textcoords='offset points', va='center', weight='bold'
        )
    axis.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axis.invert_yaxis()
    axis.grid(axis='y', visible=False)
    axis.margins(x=0.14)


def class_shares(by_class: Sequence[Mapping[str, float]]) -> str:
    """Histogram over the classes of the share inside A(x)."""
    shares = 100 * np.array([entry['share'] for entry in by_class])
    chance = 100 * float(np.mean([entry['chance'] for entry in by_class]))
    with _panel() as panel:
        panel.axis.hist(shares, np.linspace(0, 100, 26), color=ALSR, alpha=0.85)
        panel.axis.axvline(chance, color=GREY, lw=2)
        panel.axis.annotate(
            f'chance, mean {chance:.1f} %',
            (chance, 0.98),
            (6, 0),
            xycoords=('data', 'axes fraction'),
            textcoords='offset points',
            va='top',
            color=GREY,
            weight='bold',
        )
        panel.axis.set_xlabel('share of a class’s off-target mass inside A(x), %')
        panel.axis.set_ylabel('classes')
    return panel.uri


def aurocs(audits: Mapping[str, dict[str, Any]], label_of: Callable[[str], str]) -> str:
    """The AUROC of each indicator with its interval, one row per audit and indicator."""
    colors = {'norm': FNKD, 'loss': WRONG, 'margin': LSR, 'entropy': KD}
    rows = sum(len(audited['indicators']) + 1 for audited in audits.values())
    with _panel(height=1.0 + 0.28 * rows) as panel:
        axis, ticks, place = panel.axis, [], -1
        for title, audited in audits.items():
            title_place = place + 0.15
            for name, found in audited['indicators'].items():
                place += 1
                axis.plot(found['interval'], [place, place], color=colors[name], lw=2.5, solid_capstyle='round')
                axis.plot(found['auroc'], place, 'o', color=colors[name], ms=7)
                axis.annotate(
                    f'{found["auroc"]:.3f}',
                    (found['interval'][1], place),
                    (7, 0),
                    textcoords='offset points',
                    va='center',
                    color=colors[name],
                    weight='bold',
                )
                ticks.append((place, label_of(name)))
            place += 1
            axis.annotate(
                title,
                (0.0, title_place),
                xycoords=('axes fraction', 'data'),
                weight='bold',
                va='center',
                annotation_clip=False,
            )
        axis.axvline(0.5, color=GREY, lw=1, ls=(0, (5, 4)))
        axis.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
        axis.set_ylim(rows - 1.4, -1.4)
        low = min(f['interval'][0] for a in audits.values() for f in a['indicators'].values())
        axis.set_xlim(min(0.42, low - 0.03), 1.1)
        axis.set_xticks([tick for tick in np.arange(0, 1.01, 0.1) if tick >= axis.get_xlim()[0]])
        axis.grid(axis='y', visible=False)
        axis.set_xlabel('AUROC with 95 % interval; chance is 0.5')
    return panel.uri
