"""The tables of experiments: their methods, the trials of each, and the parts of the data that they use.

A trial is one setting of the tuned hyperparameters. Trials are compared on a part of the training set; the best
setting is then trained on all of it with each seed, and evaluated on the test set.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.job import Options

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LR = 'optim_wrapper.optimizer.lr'
EPS, EPS_UNIFORM, EPS_NEAR = 'model.loss.eps', 'model.loss.eps_uniform', 'model.loss.eps_near'
HEAD_EPS = 'model.head.loss.eps'
SCALE = 'model.head.scale'
TEMPERATURE = 'model.head.soft_loss.temperature'
MODE = 'model.head.soft_loss.mode'
TAU = 'model.head.soft_loss.tau'
WEIGHT = 'model.head.soft_loss.loss_weight'
MODES = 'clip', 'normalize'
HARD = 'model.head.hard_weight'
SYMBOLS = {
    LR: 'lr',
    EPS: 'ε',
    HEAD_EPS: 'ε',
    EPS_UNIFORM: 'ε₁',
    EPS_NEAR: 'ε₂',
    SCALE: 's',
    TEMPERATURE: 'T',
    WEIGHT: 'λ²',
}
"""The symbols of tuned options in tables. The weight of KD is α: its hard loss has the weight 1 - α."""

Trials = tuple[Options, ...]
UNTUNED: Trials = ({},)


@dataclass(frozen=True)
class Method:
    """A way to train the student.

    Attributes:
        title: Its name in tables.
        config: Its config, below ``configs/``.
        trials: The config options of each trial; a single trial is not a choice and is not run.
        flags: Further flags of tools/train.py, such as ``--distill``.
    """

    title: str
    config: str
    trials: Trials = UNTUNED
    flags: tuple[str, ...] = ()

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher must be trained first, as for all configs of pairs."""
        return Path(self.config).name.startswith('fnkd_')

    def chosen(self, trial: int) -> str:
        """The tuned values of a trial as text, such as ``lr 0.02, ε 0.1``; empty if nothing is tuned."""
        if len(self.trials) == 1:
            return ''
        options = self.trials[trial]
        tuned = {key for key in options if len({other.get(key) for other in self.trials}) > 1}
        symbols = {**SYMBOLS, WEIGHT: 'α'} if HARD in options else SYMBOLS
        return ', '.join(f'{symbol} {options[key]:.3g}' for key, symbol in symbols.items() if key in tuned)


@dataclass(frozen=True)
class Table:
    """A comparison of methods.

    Attributes:
        title: The data set, the models and the length of training.
        teacher: The teacher's config, below ``configs/``.
        methods: The first one is the baseline of the others.
        trial_options: Config options of trials: their part of the training set, their length.
        final_options: Config options of the trainings that are tested.
        teacher_options: Config options of the teacher's training.
        cached_views: If not 0, the tested trainings (also those without a teacher) use this number of augmented views
            of the images, the same with every seed, and a cached teacher. Trials use a live teacher.
        note: A note for the reader, shown above the table.
        side_by_side: Whether ``--device`` trains all students at once (:mod:`experiments.side_by_side`).
    """

    title: str
    teacher: str
    methods: tuple[Method, ...]
    trial_options: Options = field(default_factory=dict)
    final_options: Options = field(default_factory=dict)
    teacher_options: Options = field(default_factory=dict)
    cached_views: int = 0
    note: str = ''
    side_by_side: bool = False

    @property
    def replay_options(self) -> Options:
        """Config options that replay the views of the cache."""
        if not self.cached_views:
            return {}
        hook = 'default_hooks.reproducible'
        views = {f'{hook}.replay.seed': 0, f'{hook}.replay.views': self.cached_views}
        return {f'{hook}.type': 'ReproducibleHook', **views}


@dataclass(frozen=True)
class Pair:
    """The configs of a student, without and with its teacher, and the methods that train it by them.

    Attributes:
        plain_config: Below ``configs/``.
        distilled_config: Below ``configs/``.
        groups: The groups of classes of ALSR.
    """

    plain_config: str
    distilled_config: str
    groups: str = ''

    def plain(self, trials: Trials = UNTUNED) -> Method:
        """One-hot labels and no teacher."""
        return Method('plain', self.plain_config, trials)

    def lsr(self, trials: Trials = UNTUNED) -> Method:
        """Uniform label smoothing."""
        return Method('LSR', self.plain_config, trials, ('--label-smoothing', 'lsr'))

    def alsr(self, trials: Trials = UNTUNED) -> Method:
        """Label smoothing within groups of classes."""
        groups = ('--label-smoothing-cfg', f'groups={self.groups}')
        return Method('ALSR', self.plain_config, trials, ('--label-smoothing', 'alsr', *groups))

    def distilled(self, title: str, method: str = '', trials: Trials = UNTUNED) -> Method:
        """A teacher, by a method of ``--distill`` or the config's own."""
        return Method(title, self.distilled_config, trials, ('--distill', method) if method else ())


def grid(keys: Sequence[str], *rows: Sequence[Any]) -> Trials:
    """Trials that give values to the same options."""
    return tuple(dict(zip(keys, row, strict=True)) for row in rows)


def spread(low: float, high: float, count: int) -> list[float]:
    """``count`` numbers from ``low`` to ``high``, evenly spaced in logarithm; a single one is their geometric mean."""
    if count == 1:
        return [(low * high) ** 0.5]
    return [round(low * (high / low) ** (i / (count - 1)), 6) for i in range(count)]


def latin_order(count: int) -> list[int]:
    """A permutation that pairs low and high weights with low and high learning rates evenly."""
    step = next(s for s in range(max(2, int(count**0.5)), 2 * count + 2) if math.gcd(s, count) == 1)
    return [(step * i + step // 2) % count for i in range(count)]


def digits(trials: int = 4) -> Table:
    """The demo's table: each method's trials are a Latin square of learning rates and weights."""
    rates = spread(0.005, 0.04, trials)

    def square(low: float, high: float) -> list[tuple[float, float]]:
        weights = spread(low, high, trials)
        return [(rate, weights[i]) for rate, i in zip(rates, latin_order(trials), strict=True)]

    pair = Pair('demo/plain_digits.py', 'demo/fnkd_digits.py')
    kd = [(rate, soft, round(1 - soft, 6)) for rate, soft in square(0.1, 0.9)]
    return Table(
        title='Digits, a student of 3,562 parameters trained on 50 images',
        teacher='demo/teacher_digits.py',
        methods=(
            pair.plain(grid([LR], *([rate] for rate in rates))),
            pair.lsr(grid([LR, HEAD_EPS], *square(0.05, 0.6))),
            pair.distilled('KD', 'kd', grid([LR, WEIGHT, HARD], *kd)),
            pair.distilled('FNKD', '', grid([LR, WEIGHT], *square(3.0, 100.0))),
        ),
        trial_options={'val_dataloader.dataset.split': 'val'},
        final_options={'val_dataloader.dataset.split': 'test'},
        teacher_options={'val_dataloader.dataset.split': 'test'},
        note=(
            'The chosen weights of LSR and FNKD are the largest of their ranges. Sizes, iterations and ranges were '
            'set by trial and error, with test accuracies in view.'
        ),
    )


LITE2 = 'cub2010/plain_lite2_cub2010.py'
MBV3 = Pair('cub2010/plain_mbv3_cub2010.py', 'cub2010/fnkd_mbv3_cub2010.py', 'cub')
OWN_SPLIT = 'The 2010 edition has its own split, so the numbers are not comparable with those on CUB-200-2011.'
SEEN = 'The teacher was trained on all training images, including those that score the trials.'


def _cub2010_trials(epochs: int, warmup: float) -> Options:
    """Short trainings on four fifths of the training set, scored on the rest."""
    return {
        'train_dataloader.dataset.part': 'fit',
        'val_dataloader.dataset.part': 'tune',
        'val_dataloader.dataset.split': 'train',
        **_cub2010_length(epochs, warmup),
    }


def _cub2010_length(epochs: int, warmup: float) -> Options:
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'param_scheduler.1.T_max': epochs - warmup,
        'param_scheduler.1.end': epochs,
    }


def cub2010() -> Table:
    """Fine-tuning on CUB-200-2010; each method may find its best learning rate."""
    pair = Pair('cub2010/plain_lite0_cub2010.py', 'cub2010/fnkd_lite0_cub2010.py', 'cub')
    size: Options = {
        'train_dataloader.dataset.pipeline.1.scale': 128,
        'val_dataloader.dataset.pipeline.1.scale': (147, 147),
        'val_dataloader.dataset.pipeline.2.crop_size': 128,
    }
    length = {**size, **_cub2010_length(15, 0.5)}
    # Chosen after trials on held-out images: KD had 47.7 % at 0.02, and the control its best at 0.0025, the lowest.
    rates = [0.0025], [0.005], [0.01], [0.00125]
    smooth, kd = [LR, EPS_UNIFORM, EPS_NEAR], [LR, TEMPERATURE, WEIGHT, HARD]
    return Table(
        title='CUB-200-2010 at 128 pixels, EfficientNet-Lite2 → Lite0, both from ImageNet weights, 15 epochs',
        teacher=LITE2,
        methods=(
            pair.plain(grid([LR], [0.005], [0.01], [0.02], [0.04])),
            pair.lsr(grid([LR, EPS], [0.005, 0.1], [0.01, 0.1], [0.02, 0.1], [0.01, 0.3])),
            pair.alsr(grid(smooth, [0.005, 0.1, 0.1], [0.01, 0.1, 0.1], [0.02, 0.1, 0.1], [0.01, 0.05, 0.3])),
            Method(
                'HE',
                'cub2010/he_lite0_cub2010.py',
                grid([LR, SCALE], [0.005, 16], [0.01, 16], [0.02, 16], [0.01, 32]),
            ),
            pair.distilled(
                'KD', 'kd', grid(kd, *([r, 4, 0.9, 0.1] for r in (0.005, 0.01, 0.0025)), [0.01, 2, 0.9, 0.1])
            ),
            pair.distilled("KD, FNKD's weights and T", 'kd', grid(kd, *([*r, 3, 1, 1] for r in rates))),
            *(pair.distilled(f'FNKD, {m}', 'fnkd', grid([LR, MODE], *([*r, m] for r in rates))) for m in MODES),
            pair.distilled('TTM', 'ttm', grid([LR], *rates)),
        ),
        trial_options={**size, **_cub2010_trials(5, 0.5)},
        final_options=length,
        teacher_options=length,
        note=(
            f'{OWN_SPLIT} {SEEN} The learning rates of the trials with a teacher were set after a look at the '
            'accuracies of some trials.'
        ),
    )


def cub2010_small() -> Table:
    """As :func:`cub2010`, with a student that is far worse than its teacher."""
    pair = MBV3

    def rates(**fixed: Any) -> Trials:
        return tuple({LR: rate, **fixed} for rate in (0.002, 0.004, 0.008))

    return Table(
        title='CUB-200-2010 at 80 pixels, EfficientNet-Lite2 → MobileNetV3-Small × 0.5 from random weights, 12 epochs',
        teacher=LITE2,
        methods=(
            pair.plain(rates()),
            pair.lsr(rates(**{EPS: 0.1})),
            pair.alsr(rates(**{EPS_UNIFORM: 0.1, EPS_NEAR: 0.1})),
            pair.distilled('KD', 'kd', rates(**{TEMPERATURE: 4, WEIGHT: 0.9, HARD: 0.1})),
            pair.distilled("KD, FNKD's weights and T", 'kd', rates(**{TEMPERATURE: 3, WEIGHT: 1, HARD: 1})),
            *(pair.distilled(f'FNKD, {m}', '', rates(**{WEIGHT: 9, MODE: m})) for m in MODES),
        ),
        trial_options=_cub2010_trials(5, 1),
        cached_views=12,
        note=(
            'Each epoch has its own augmented view of the images, the same with every seed. Methods with a teacher use '
            f'a cached one. Only the learning rate was tuned. {SEEN}'
        ),
    )


def cub2010_small_sweep() -> Table:
    """FNKD's weight and τ for the student of :func:`cub2010_small`, scored on a part of the training set."""
    held_out = _cub2010_trials(12, 1)
    keys = [LR, WEIGHT, TAU]
    settings = [(weight, tau) for weight in (3, 9, 27) for tau in (3, 6, 12)]
    return Table(
        title='FNKD with other weights and τ: the student and length of `cub2010_small`',
        teacher=LITE2,
        methods=tuple(
            MBV3.distilled(f'FNKD, λ² {weight}, τ {tau}', '', grid(keys, [0.004, weight, tau]))
            for weight, tau in [(9, 'auto'), *settings]
        ),
        final_options=held_out,
        teacher_options={key: value for key, value in held_out.items() if '_dataloader.' in key},
        cached_views=12,
        note='Scored on a fifth of the training set, which neither the teacher nor the students see.',
    )


def cifar100(student: str, teacher: str, epochs: int = 240, title: str = '', note: str = '') -> Table:
    """A pair of the public CIFAR-100 benchmark, each method with its authors' values; nothing is tuned.

    In shorter trainings the milestones are scaled in proportion.
    """
    pair = Pair(
        f'cifar100/plain_{student}_cifar100.py', f'cifar100/fnkd_{student}_from_{teacher}_cifar100.py', 'cifar100'
    )
    share = epochs / 240
    length: Options = {}
    if epochs != 240:
        length = {
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': epochs,
            # Rounded up.
            'param_scheduler.milestones': [math.ceil(m * share) for m in (150, 180, 210)],
        }
    return Table(
        title=title,
        teacher=f'cifar100/plain_{teacher}_cifar100.py',
        methods=(
            pair.plain(),
            pair.lsr(),
            pair.alsr(),
            pair.distilled('KD', 'kd_benchmark'),
            pair.distilled("KD, FNKD's weights and T", 'kd_benchmark', grid([TEMPERATURE, WEIGHT, HARD], [3, 1, 1])),
            *(pair.distilled(f'FNKD, {m}', 'fnkd', grid([MODE], [m])) for m in MODES),
            pair.distilled('LSKD', 'lskd'),
            pair.distilled('NormKD', 'normkd'),
            pair.distilled('DKD', 'dkd_beta2' if student == 'r20' else 'dkd'),
            pair.distilled('DIST', 'dist'),
            pair.distilled('TTM', 'ttm'),
            pair.distilled('WTTM', 'wttm'),
            pair.distilled('TTM by norm', 'fnttm'),
        ),
        final_options=length,
        teacher_options=length,
        note=note,
        side_by_side=True,
    )


TABLES: dict[str, Callable[[], Table]] = {
    'digits': digits,
    'cub2010': cub2010,
    'cub2010_small': cub2010_small,
    'cub2010_small_sweep': cub2010_small_sweep,
    'cifar100': lambda: cifar100('r20', 'r56', title='CIFAR-100, 240 epochs, ResNet-56 → ResNet-20'),
    'cifar100_8x4': lambda: cifar100('r8x4', 'r32x4', title='CIFAR-100, 240 epochs, ResNet-32x4 → ResNet-8x4'),
    'cifar100_60e': lambda: cifar100(
        'r20',
        'r56',
        60,
        'CIFAR-100, 60 epochs, ResNet-56 → ResNet-20',
        'A quarter of the public recipe, with its learning-rate decays in proportion. Compare its rows with one '
        'another, not with published numbers.',
    ),
}
