"""The demo's picture: a headline, accuracies and feature norms."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import numpy as np
from experiments.report import deviation
from matplotlib import pyplot as plt

_COLORS = {'plain': '#7a7f87', 'LSR': '#c58b2a', 'KD': '#2f7fb8', 'FNKD': '#1d9a6c'}
_RIGHT, _WRONG, _INK = '#5b8fb9', '#d1495b', '#22262b'


def draw(path: Path, subject: str, finals: dict[str, list[float]], teacher: float, norms: dict[str, list]) -> None:
    """Write the picture: a headline, the students' accuracies, and the teacher's feature norms.

    Args:
        path: The file.
        subject: What is classified; it begins the headline.
        finals: Test accuracies of each method, one for each seed, in per cent; ``plain`` and ``FNKD`` are needed.
        teacher: The teacher's test accuracy, in per cent.
        norms: The teacher's ``norm`` of each test image, and ``right``, whether it is classified correctly.
    """
    style = {
        'font.size': 10.5,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.edgecolor': '#9aa0a6',
        'axes.titlelocation': 'left',
        'axes.titleweight': 'bold',
        'text.color': _INK,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, 2, figsize=(12, 5.4), layout='constrained')
        figure.suptitle(_headline(subject, finals, teacher), x=0.01, ha='left', fontsize=15, weight='bold')
        _accuracies(axes[0], finals, teacher)
        _norms(axes[1], np.array(norms['norm']), np.array(norms['right']))
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _headline(subject: str, finals: dict[str, list[float]], teacher: float) -> str:
    plain, fnkd = (float(np.mean(finals[name])) for name in ('plain', 'FNKD'))
    return f'{subject}: a small student gets {plain:.1f} % alone, {fnkd:.1f} % with FNKD (its teacher {teacher:.1f} %)'


def _accuracies(axis: Any, finals: dict[str, list[float]], teacher: float) -> None:
    for place, (method, values) in enumerate(finals.items()):
        color, mean = _COLORS[method], np.mean(values)
        jitter = np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else [0]
        axis.errorbar(place, mean, deviation(values), color=color, capsize=7, lw=2, zorder=2)
        axis.hlines(mean, place - 0.3, place + 0.3, color=color, lw=3, zorder=2)
        axis.scatter(place + np.array(jitter), values, s=34, color='white', edgecolor=color, lw=1.6, zorder=3)
        axis.annotate(
            f'{mean:.1f}', (place + 0.34, mean), color=color, weight='bold', va='center', annotation_clip=False
        )
    axis.axhline(teacher, color=_INK, lw=1, ls=(0, (5, 4)))
    axis.annotate(
        f'teacher {teacher:.1f}', (-0.45, teacher), (0, -4), textcoords='offset points', va='top', fontsize=9.5
    )
    axis.set_xticks(range(len(finals)), finals)
    axis.set_xlim(-0.5, len(finals) - 0.25)
    axis.set_ylabel('test accuracy, %')
    axis.grid(axis='y', color='#e6e8eb')
    axis.set_axisbelow(True)
    axis.set_title('Accuracy of the students on test images\n', pad=2)
    _explain(axis, 'Each dot is one training; lines are means ± standard deviations, dashed is the teacher.')


def _norms(axis: Any, norm: np.ndarray, right: np.ndarray) -> None:
    bins = np.linspace(norm.min(), norm.max(), 25)
    top = 0.0
    # Correct predictions upwards, wrong ones downwards, each in percent of its own number.
    for label, chosen, color, sign in (('right', right, _RIGHT, 1), ('wrong', ~right, _WRONG, -1)):
        if not chosen.any():
            continue
        share = np.histogram(norm[chosen], bins)[0] / chosen.sum() * 100
        top = max(top, share.max())
        axis.stairs(sign * share, bins, fill=True, color=color, alpha=0.85)
        mean = norm[chosen].mean()
        axis.annotate(
            f'{label}: {chosen.sum()}\nmean {mean:.1f}',
            (0.99, 0.5 + sign * 0.42),
            xycoords='axes fraction',
            ha='right',
            va='center',
            color=color,
            weight='bold',
        )
        axis.plot([mean, mean], [0, sign * share.max() * 1.12], color=_INK, lw=1.6)
    axis.axhline(0, color=_INK, lw=0.8)
    axis.set_ylim(-1.2 * top, 1.2 * top)
    axis.yaxis.set_major_formatter(lambda value, _: f'{abs(value):g}')
    axis.set_xlabel('feature norm ‖f‖ on the test images')
    axis.set_ylabel('share, %')
    axis.set_title("The teacher's feature norms\n", pad=2)
    _explain(axis, 'Right predictions up, wrong ones down. FNKD divides logits by ‖f‖ / τ.')


def _explain(axis: Any, text: str) -> None:
    note = axis.annotate(text, (0, 1), (0, 6), xycoords='axes fraction', textcoords='offset points', fontsize=9.5)
    note.set_in_layout(False)  # or its width would push the panels apart
