"""Draw pictures into docs/_static: the method, and results files of benchmarks/.

python docs/pictures.py
python docs/pictures.py --curves work_dirs/reproduce/cub2010_small    # first collect the training curves
python docs/pictures.py --norms work_dirs/norms_digits                # first collect what docs/analyze.md analysed
"""

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from fnkd_plugin.mm.datasets.digits import Digits

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'docs' / '_static'
INK, BLUE, RUST, GREY = '#22313c', '#7aa6c2', '#b5542b', '#8a949b'
PANELS = {
    'cifar100_60e': (
        'CIFAR-100, ResNet-56 → ResNet-20\n60 epochs from random weights',
        {
            'plain': 'plain',
            'kd': 'KD',
            'kd_fnkd_s_weights_and_t': "KD, FNKD's weights",
            'dkd': 'DKD',
            'fnkd_normalize': 'FNKD',
        },
    ),
    'cub2010': (
        'CUB-200-2010, EfficientNet-Lite2 → Lite0\n15 epochs from ImageNet weights',
        {
            'plain': 'plain',
            'lsr': 'LSR',
            'he': 'HE, no teacher',
            'kd': 'KD',
            'kd_fnkd_s_weights_and_t': "KD, FNKD's weights",
            'fnkd_normalize': 'FNKD',
        },
    ),
}
"""By results file: a title, and the methods that are shown, by the beginnings of their runs' names."""


def accuracies(runs: dict[str, Any], method: str) -> list[float]:
    """Test accuracies of a method, one per seed, in per cent."""
    return [run['accuracy'] for name, run in runs.items() if re.fullmatch(rf'{method}_seed\d+', name)]


def draw_results(path: Path, root: Path = ROOT) -> None:
    """Bars mark means over seeds, dots single seeds, the dashed line the teacher."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9, 2.6), layout='constrained')
    for axis, (name, (title, methods)) in zip(axes, PANELS.items(), strict=True):
        runs = json.loads((root / 'benchmarks' / f'{name}.json').read_text())['runs']
        found = {label: accuracies(runs, method) for method, label in methods.items()}
        teacher = runs['teacher']['accuracy']
        colours = [RUST if label.startswith('FNKD') else BLUE for label in found]
        for place, (values, colour) in enumerate(zip(found.values(), colours, strict=True)):
            axis.plot([statistics.fmean(values)] * 2, [place - 0.32, place + 0.32], color=colour, lw=4)
            axis.plot(values, [place] * len(values), 'o', color=INK, ms=3.5)
        axis.set_yticks(range(len(found)), list(found))
        axis.set_ylim(-0.6, len(found) - 0.4)
        axis.grid(axis='x', color='#e8ecef')
        axis.set_axisbelow(True)
        axis.axvline(teacher, color=GREY, ls='--', lw=1.2)
        axis.annotate(' teacher', (teacher, -0.55), color=GREY, fontsize=8, annotation_clip=False)
        everything = [a for values in found.values() for a in values] + [teacher]
        axis.set_xlim(min(everything) - 2, max(everything) + 1.5)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, color=INK, loc='left', pad=12)
        axis.set_xlabel('test accuracy, %', fontsize=8, color=INK)
        axis.tick_params(labelsize=8, colors=INK)
        axis.spines[['top', 'right', 'left']].set_visible(False)
    _save(figure, path)


def draw_method(path: Path) -> None:
    """Two networks, one image, two losses."""
    figure, axis = plt.subplots(figsize=(9, 2.9), layout='constrained')
    axis.set(xlim=(0, 100), ylim=(0, 32))
    axis.axis('off')

    def box(x: float, y: float, width: float, height: float, text: str, colour: str, frame: str = INK) -> None:
        shape = dict(boxstyle='round,pad=0,rounding_size=0.9', fc=colour, ec=frame, lw=1)
        axis.add_patch(matplotlib.patches.FancyBboxPatch((x, y), width, height, **shape))
        axis.text(x + width / 2, y + height / 2, text, ha='center', va='center', fontsize=9, color=INK)

    def arrow(x: float, y: float, to_x: float, to_y: float, colour: str = INK) -> None:
        axis.annotate('', (to_x, to_y), (x, y), arrowprops=dict(arrowstyle='-|>', color=colour, lw=1.1))

    box(1, 13, 9, 6, 'image', '#eef1f3')
    box(17, 21, 18, 9, 'teacher\n(frozen)', '#dfe8ee')
    box(17, 3, 12, 6, 'student', '#f4e3da', RUST)
    box(42, 22.5, 17, 6, r'logits $v$, norm $\Vert f_t\Vert$', 'white')
    box(42, 3, 17, 6, r'logits $z$, norm $\Vert f_s\Vert$', 'white')
    box(65, 22.5, 15, 6, r'$\sigma\,(v\,\tau/\Vert f_t\Vert)$', '#dfe8ee')
    box(65, 12, 15, 6, r'$\sigma\,(z\,\tau/\Vert f_s\Vert)$', '#f4e3da', RUST)
    box(86, 17, 13, 6, 'soft loss', 'white')
    box(86, 3, 13, 6, 'hard loss', 'white')
    arrow(10, 17.5, 17, 23)
    arrow(10, 14.5, 17, 7.5)
    arrow(35, 25.5, 42, 25.5)
    arrow(29, 6, 42, 6)
    arrow(59, 25.5, 65, 25.5)
    arrow(59, 7.5, 65, 13)
    arrow(80, 25, 86, 21.5)
    arrow(80, 15, 86, 18.5)
    arrow(59, 5.5, 86, 5.5)
    axis.text(72.5, 1.2, 'label', ha='center', fontsize=9, color=INK)
    arrow(75.5, 1.8, 86, 4, GREY)
    axis.text(72.5, 30, "each sample's feature norm sets its temperature", ha='center', fontsize=8, color=GREY)
    _save(figure, path)


CURVES = {'kd': ('KD', BLUE), 'fnkd_clip': ("FNKD, 'clip'", GREY), 'fnkd_normalize': ("FNKD, 'normalize'", RUST)}
"""The methods whose training curves are drawn, by the beginnings of their runs' names."""


def collect_curves(folder: Path, seeds: range = range(3)) -> dict[str, Any]:
    """The logged feature norms and losses of a table's final trainings, from MMEngine's ``scalars.json``."""
    found: dict[str, Any] = {}
    for name in [f'{method}_seed{seed}' for method in CURVES for seed in seeds]:
        [log] = folder.glob(f'{name}_*/*/vis_data/scalars.json')
        rows = [row for line in log.read_text().splitlines() if 'student_norm' in (row := json.loads(line))]
        keys = {'step': 'step', 'norm': 'student_norm', 'loss': 'hard_ce'}
        found[name] = {short: [round(row[key], 4) for row in rows] for short, key in keys.items()}
        if 'tau' in rows[-1]:
            found[name]['tau'] = round(rows[-1]['tau'], 4)
    return found


def draw_curves(path: Path, root: Path = ROOT) -> None:
    """Feature norms and hard losses over training, a line per seed; the dashed line is tau."""
    runs = json.loads((root / 'benchmarks' / 'curves_cub2010_small.json').read_text())
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout='constrained')
    titles = {'norm': "student's mean feature norm", 'loss': 'cross-entropy with the labels'}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name, run in runs.items():
            label, colour = CURVES[name.rpartition('_seed')[0]]
            first = name.endswith('_seed0')
            axis.plot(run['step'], run[key], color=colour, lw=1.2, alpha=0.9, label=label if first else None)
        axis.set_title(title, fontsize=9, color=INK, loc='left')
        axis.set_xlabel('iteration', fontsize=8, color=INK)
        axis.tick_params(labelsize=8, colors=INK)
        axis.grid(color='#e8ecef')
        axis.spines[['top', 'right']].set_visible(False)
    tau = next(run['tau'] for run in runs.values() if 'tau' in run)
    axes[0].axhline(tau, color=INK, ls='--', lw=1)
    axes[0].annotate(r'$\tau$', (0, tau), color=INK, va='bottom', fontsize=10)
    axes[0].set_ylim(0)
    axes[1].legend(fontsize=8, frameon=False)
    _save(figure, path)


def collect_norms(folder: Path) -> dict[str, Any]:
    """Index, label, prediction and feature norm of each image, from the ``images.jsonl`` of ``fnkd analyze``."""
    rows = [json.loads(line) for line in (folder / 'images.jsonl').read_text().splitlines()]
    whole = {key: [int(row[key]) for row in rows] for key in ('index', 'label', 'prediction')}
    made = json.loads((folder / 'analysis.json').read_text())['made']
    return dict(made=made, **whole, norm=[round(row['norm'], 4) for row in rows])


def norms_of_digits(root: Path = ROOT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions and feature norms of the digits' test images, [N] each, in the data set's order."""
    found = json.loads((root / 'benchmarks' / 'norms_digits.json').read_text())
    label, prediction, norm = (np.array(found[key]) for key in ('label', 'prediction', 'norm'))
    assert found['index'] == list(range(len(norm)))
    return label, prediction, norm


def draw_norms(path: Path, root: Path = ROOT) -> None:
    """Feature norms of right predictions upwards, of wrong ones downwards, each in per cent of its own number."""
    label, prediction, norm = norms_of_digits(root)
    figure, axis = plt.subplots(figsize=(6.5, 2.8), layout='constrained')
    bins = np.histogram_bin_edges(norm, 30)
    for kind, chosen, colour, sign in (
        ('right', label == prediction, BLUE, 100),
        ('wrong', label != prediction, RUST, -100),
    ):
        share = sign * np.histogram(norm[chosen], bins)[0] / chosen.sum()
        name = f'{kind}: {chosen.sum()} images, mean {norm[chosen].mean():.1f}'
        axis.stairs(share, bins, fill=True, color=colour, label=name)
    axis.axhline(0, color=INK, lw=0.8)
    axis.yaxis.set_major_formatter(lambda value, _: f'{abs(value):g} %')
    axis.set_xlabel(r"feature norm $\Vert f\Vert$ of the student's test images", fontsize=8, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def draw_gallery(path: Path, digits: Sequence[int] = (1, 5, 8), show: int = 6, root: Path = ROOT) -> None:
    """As the paper's figure 3: the test images with the smallest and with the largest norms of some classes."""
    label, prediction, norm = norms_of_digits(root)
    dataset = Digits('test')
    figure, axes = plt.subplots(
        len(digits), 2 * show + 1, figsize=(9, 2.7), width_ratios=[1] * show + [0.4] + [1] * show
    )
    figure.subplots_adjust(0.01, 0.05, 0.99, 0.84, 0.12, 0.3)
    for row, digit in zip(axes, digits, strict=True):
        members = np.flatnonzero(label == digit)
        ordered = members[norm[members].argsort(kind='stable')]
        row[show].axis('off')
        for axis, index in zip([*row[:show], *row[show + 1 :]], [*ordered[:show], *ordered[-show:]], strict=True):
            axis.imshow(dataset.get_data_info(int(index))['img'][..., 0], cmap='gray_r', vmin=0, vmax=240)
            wrong = prediction[index] != label[index]
            axis.set_title(
                f'{norm[index]:.1f}' + (f' → {prediction[index]}' if wrong else ''),
                fontsize=8,
                pad=2,
                color=RUST if wrong else INK,
            )
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color=RUST if wrong else '#cfd6da', linewidth=1.8 if wrong else 0.8)
    for x, text in ((0.01, 'smallest feature norms of a class'), (0.525, 'largest')):
        figure.text(x, 0.95, text, fontsize=9, color=INK, weight='bold', va='center')
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    # Neither a date nor random ids: the same numbers give the same file.
    with plt.rc_context({'svg.hashsalt': 'fnkd_plugin'}):
        figure.savefig(path, metadata={'Date': None}, facecolor='white')
    plt.close(figure)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--curves', type=Path)
    parser.add_argument('--norms', type=Path)
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    for folder, collect, name in (
        (args.curves, collect_curves, 'curves_cub2010_small'),
        (args.norms, collect_norms, 'norms_digits'),
    ):
        if folder:
            file = ROOT / 'benchmarks' / f'{name}.json'
            file.write_text(json.dumps(collect(folder), separators=(',', ':')) + '\n')
    draw_gallery(OUT / 'digits_gallery.svg')
    draw_norms(OUT / 'digits_norms.svg')
    draw_curves(OUT / 'curves.svg')
    draw_method(OUT / 'method.svg')
    draw_results(OUT / 'results.svg')
