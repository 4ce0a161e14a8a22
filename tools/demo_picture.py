"""The demo's picture: a headline, accuracies and feature norms."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import numpy as np
from experiments.report import deviation
from matplotlib import pyplot as plt

from fnkd_plugin.analysis.pictures import FNKD, GREY, INK, KD, LSR, STYLE, draw_norms

_COLORS = {'plain': GREY, 'LSR': LSR, 'KD': KD, 'FNKD': FNKD}


def draw(path: Path, subject: str, finals: dict[str, list[float]], teacher: float, norms: dict[str, list]) -> None:
    """Write the picture: a headline, the students' accuracies, and the teacher's feature norms.

    Args:
        path: The file.
        subject: What is classified; it begins the headline.
        finals: Test accuracies of each method, one for each seed, in per cent; ``plain`` and ``FNKD`` are needed.
        teacher: The teacher's test accuracy, in per cent.
        norms: The teacher's ``norm`` of each test image, and ``right``, whether it is classified correctly.
    """
    style = {**STYLE, 'axes.grid': False, 'axes.titlelocation': 'left', 'axes.titleweight': 'bold'}
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
    axis.axhline(teacher, color=INK, lw=1, ls=(0, (5, 4)))
    axis.annotate(
        f'teacher {teacher:.1f}', (-0.45, teacher), (0, -4), textcoords='offset points', va='top', fontsize=9.5
    )
    axis.set_xticks(range(len(finals)), finals)
    axis.set_xlim(-0.5, len(finals) - 0.25)
    axis.set_ylabel('test accuracy, %')
    axis.grid(axis='y', color='#e6e8eb')
    axis.set_title('Accuracy of the students on test images\n', pad=2)
    _explain(axis, 'Each dot is one training; lines are means ± standard deviations, dashed is the teacher.')


def _norms(axis: Any, norm: np.ndarray, right: np.ndarray) -> None:
    draw_norms(axis, norm, right)
    axis.set_xlabel('feature norm ‖f‖ on the test images')
    axis.set_ylabel('share, %')
    axis.set_title("The teacher's feature norms\n", pad=2)
    axis.legend()
    _explain(axis, 'Right predictions up, wrong ones down. FNKD divides logits by ‖f‖ / τ.')


def _explain(axis: Any, text: str) -> None:
    note = axis.annotate(text, (0, 1), (0, 6), xycoords='axes fraction', textcoords='offset points', fontsize=9.5)
    note.set_in_layout(False)  # or its width would push the panels apart
