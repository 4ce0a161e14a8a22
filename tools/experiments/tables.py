"""The tables of experiments: their methods, the trials of each, and the parts of the data that they use.

A trial is one setting of the tuned hyperparameters. Trials are compared on a part of the training set; the best
setting is then trained on all of it with each seed, and evaluated on the test set.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.job import Options

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LR = 'optim_wrapper.optimizer.lr'
WEIGHT = 'model.head.soft_loss.loss_weight'
HARD = 'model.head.hard_weight'
TEMPERATURE = 'model.head.soft_loss.temperature'
MODE = 'model.head.soft_loss.mode'
CUB2010_TRIALS: Options = {
    'train_dataloader.dataset.part': 'fit',
    'val_dataloader.dataset.part': 'tune',
    'val_dataloader.dataset.split': 'train',
    'train_cfg.max_epochs': 2,
    'train_cfg.val_interval': 2,
    'param_scheduler.1.T_max': 1.5,
    'param_scheduler.1.end': 2,
}


def by(method: str) -> tuple[str, ...]:
    """Flags that train a distilled config's student and teacher by another method."""
    return '--distill', method


def smoothed(method: str, groups: str = '') -> tuple[str, ...]:
    """Flags that smooth the labels of a plain config."""
    return '--label-smoothing', method, *(('--label-smoothing-cfg', f'groups={groups}') if groups else ())


@dataclass(frozen=True)
class Method:
    """A way to train the student.

    Attributes:
        title: Its name in tables.
        config: Its config, below ``configs/``.
        trials: The config options of each trial.
        symbols: The symbol of each tuned option in tables.
        needs_teacher: Whether the teacher must be trained first.
        flags: Further flags of tools/train.py, such as ``--distill``.
    """

    title: str
    config: str
    trials: tuple[Options, ...]
    symbols: Mapping[str, str]
    needs_teacher: bool = False
    flags: tuple[str, ...] = ()

    def chosen(self, options: Options) -> str:
        """The tuned values as text, such as ``lr 0.02, ε 0.1``."""
        return ', '.join(f'{symbol} {options[key]:.3g}' for key, symbol in self.symbols.items() if key in options)


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
    """

    title: str
    teacher: str
    methods: tuple[Method, ...]
    trial_options: Options
    final_options: Options = field(default_factory=dict)
    teacher_options: Options = field(default_factory=dict)
    cached_views: int = 0
    note: str = ''

    @property
    def replay_options(self) -> Options:
        """Config options that replay the views of the cache."""
        if not self.cached_views:
            return {}
        hook = 'default_hooks.reproducible'
        views = {f'{hook}.replay.seed': 0, f'{hook}.replay.views': self.cached_views}
        return {f'{hook}.type': 'ReproducibleHook', **views}


def spread(low: float, high: float, count: int) -> list[float]:
    """``count`` numbers from ``low`` to ``high``, evenly spaced in logarithm; a single one is their geometric mean."""
    if count == 1:
        return [(low * high) ** 0.5]
    return [round(low * (high / low) ** (i / (count - 1)), 6) for i in range(count)]


def latin_order(count: int) -> list[int]:
    """A permutation that pairs low and high weights with low and high learning rates evenly."""
    step = next(s for s in range(max(2, int(count**0.5)), 2 * count + 2) if _coprime(s, count))
    return [(step * i + step // 2) % count for i in range(count)]


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def digits(trials: int = 4) -> Table:
    """The demo's table: each method's trials are a Latin square of learning rates and weights."""
    rates = spread(0.005, 0.04, trials)

    def tuned(weights: tuple[float, float], options: Callable[[float], dict[str, Any]]) -> tuple[Options, ...]:
        values = spread(*weights, trials)
        return tuple({LR: lr, **options(values[j])} for lr, j in zip(rates, latin_order(trials), strict=True))

    eps, lr = 'model.head.loss.eps', {LR: 'lr'}
    return Table(
        title='Digits, a student of 3,562 parameters trained on 50 images',
        teacher='demo/teacher_digits.py',
        methods=(
            Method('plain', 'demo/plain_digits.py', tuple({LR: r} for r in rates), lr),
            Method(
                'LSR',
                'demo/plain_digits.py',
                tuned((0.05, 0.6), lambda e: {eps: e}),
                {**lr, eps: 'ε'},
                flags=smoothed('lsr'),
            ),
            Method(
                'KD',
                'demo/fnkd_digits.py',
                tuned((0.1, 0.9), lambda a: {WEIGHT: a, HARD: round(1 - a, 6)}),
                {**lr, WEIGHT: 'α'},
                needs_teacher=True,
                flags=by('kd'),
            ),
            Method(
                'FNKD',
                'demo/fnkd_digits.py',
                tuned((3.0, 100.0), lambda w: {WEIGHT: w}),
                {**lr, WEIGHT: 'λ²'},
                needs_teacher=True,
            ),
        ),
        trial_options={'val_dataloader.dataset.split': 'val'},
        final_options={'val_dataloader.dataset.split': 'test'},
        teacher_options={'val_dataloader.dataset.split': 'test'},
        note=(
            'The chosen weights of LSR and FNKD are the largest of their ranges. Sizes, iterations and ranges were '
            'set by trial and error, with test accuracies in view.'
        ),
    )


def cub2010() -> Table:
    """The methods of the paper's Table 1, on CUB-200-2010."""
    lr, eps = {LR: 'lr'}, 'model.loss.eps'
    uniform, near = 'model.loss.eps_uniform', 'model.loss.eps_near'
    scale = 'model.head.scale'
    return Table(
        title='CUB-200-2010 at 80 pixels, EfficientNet-Lite2 → Lite0, both from ImageNet weights, 5 epochs',
        teacher='cub2010/plain_lite2_cub2010.py',
        methods=(
            Method('plain', 'cub2010/plain_lite0_cub2010.py', ({LR: 0.005}, {LR: 0.01}, {LR: 0.02}), lr),
            Method(
                'LSR',
                'cub2010/plain_lite0_cub2010.py',
                ({LR: 0.005, eps: 0.1}, {LR: 0.01, eps: 0.1}, {LR: 0.01, eps: 0.3}),
                {**lr, eps: 'ε'},
                flags=smoothed('lsr'),
            ),
            Method(
                'ALSR',
                'cub2010/plain_lite0_cub2010.py',
                (
                    {LR: 0.005, uniform: 0.1, near: 0.1},
                    {LR: 0.01, uniform: 0.1, near: 0.1},
                    {LR: 0.01, uniform: 0.05, near: 0.3},
                ),
                {**lr, uniform: 'ε₁', near: 'ε₂'},
                flags=smoothed('alsr', 'cub'),
            ),
            Method(
                'HE',
                'cub2010/he_lite0_cub2010.py',
                ({LR: 0.01, scale: 16}, {LR: 0.02, scale: 16}, {LR: 0.01, scale: 32}),
                {**lr, scale: 's'},
            ),
            Method(
                'KD, T = 1',
                'cub2010/fnkd_lite0_cub2010.py',
                (
                    {LR: 0.01, WEIGHT: 0.5, HARD: 0.5},
                    {LR: 0.01, WEIGHT: 0.9, HARD: 0.1},
                    {LR: 0.02, WEIGHT: 0.9, HARD: 0.1},
                ),
                {**lr, WEIGHT: 'α'},
                needs_teacher=True,
                flags=by('kd_t1'),
            ),
            Method(
                'KD',
                'cub2010/fnkd_lite0_cub2010.py',
                (
                    {LR: 0.01, TEMPERATURE: 4, WEIGHT: 0.9, HARD: 0.1},
                    {LR: 0.02, TEMPERATURE: 4, WEIGHT: 0.9, HARD: 0.1},
                    {LR: 0.01, TEMPERATURE: 2, WEIGHT: 0.9, HARD: 0.1},
                ),
                {**lr, TEMPERATURE: 'T', WEIGHT: 'α'},
                needs_teacher=True,
                flags=by('kd'),
            ),
            Method(
                'FNKD',
                'cub2010/fnkd_lite0_cub2010.py',
                ({LR: 0.005, WEIGHT: 9}, {LR: 0.01, WEIGHT: 9}, {LR: 0.005, WEIGHT: 27}),
                {**lr, WEIGHT: 'λ²'},
                needs_teacher=True,
            ),
        ),
        trial_options=CUB2010_TRIALS,
        note=(
            'The 2010 edition has its own split, so the numbers are not comparable with those on CUB-200-2011. The '
            'teacher was trained on all training images, including those that score the trials. FNKD was tried at '
            'learning rates of 0.005 and 0.01, KD and HE at 0.01 and 0.02 (docs/results.md has KD at 0.005).'
        ),
    )


def cub2010_small() -> Table:
    """As :func:`cub2010`, with a student that is far worse than its teacher."""
    lr, eps = {LR: 'lr'}, 'model.loss.eps'
    uniform, near = 'model.loss.eps_uniform', 'model.loss.eps_near'
    kd = {LR: 0.004, TEMPERATURE: 4, WEIGHT: 0.9, HARD: 0.1}
    return Table(
        title='CUB-200-2010 at 80 pixels, EfficientNet-Lite2 → MobileNetV3-Small × 0.5 from random weights, 12 epochs',
        teacher='cub2010/plain_lite2_cub2010.py',
        methods=(
            Method('plain', 'cub2010/plain_mbv3_cub2010.py', ({LR: 0.002}, {LR: 0.004}), lr),
            Method(
                'LSR',
                'cub2010/plain_mbv3_cub2010.py',
                ({LR: 0.002, eps: 0.1}, {LR: 0.004, eps: 0.1}),
                {**lr, eps: 'ε'},
                flags=smoothed('lsr'),
            ),
            Method(
                'ALSR',
                'cub2010/plain_mbv3_cub2010.py',
                ({LR: 0.002, uniform: 0.1, near: 0.1}, {LR: 0.004, uniform: 0.1, near: 0.1}),
                {**lr, uniform: 'ε₁', near: 'ε₂'},
                flags=smoothed('alsr', 'cub'),
            ),
            Method(
                'KD',
                'cub2010/fnkd_mbv3_cub2010.py',
                ({**kd, LR: 0.002}, kd),
                {**lr, TEMPERATURE: 'T', WEIGHT: 'α'},
                needs_teacher=True,
                flags=by('kd'),
            ),
            Method(
                'FNKD',
                'cub2010/fnkd_mbv3_cub2010.py',
                ({LR: 0.002, WEIGHT: 9}, {LR: 0.004, WEIGHT: 9}),
                {**lr, WEIGHT: 'λ²'},
                needs_teacher=True,
            ),
            Method(
                'FNKD, normalize',
                'cub2010/fnkd_mbv3_cub2010.py',
                ({LR: 0.002, WEIGHT: 9, MODE: 'normalize'}, {LR: 0.004, WEIGHT: 9, MODE: 'normalize'}),
                {**lr, WEIGHT: 'λ²'},
                needs_teacher=True,
            ),
        ),
        trial_options={
            **CUB2010_TRIALS,
            'train_cfg.max_epochs': 5,
            'train_cfg.val_interval': 5,
            'param_scheduler.1.T_max': 4,
            'param_scheduler.1.end': 5,
        },
        cached_views=12,
        note=(
            'Each epoch has its own augmented view of the images, the same with every seed. KD and FNKD use a cached '
            'teacher. Only two learning rates were tried. The teacher was trained on all training images, including '
            'those that score the trials. The last method was added after the others had been tested, to find out '
            'why FNKD is not better.'
        ),
    )


def sweeps_cub2010() -> Table:
    """FNKD at several norms and KD at several temperatures, scored on the held-out part; nothing is tuned."""
    lr, tau = {LR: 'lr'}, 'model.head.soft_loss.tau'
    kd = {LR: 0.01, WEIGHT: 0.9, HARD: 0.1}
    pair = 'cub2010/fnkd_lite0_cub2010.py'
    return Table(
        title="FNKD's τ and KD's T on CUB-200-2010's held-out fifth, 2 epochs",
        teacher='cub2010/plain_lite2_cub2010.py',
        methods=(
            Method('plain', 'cub2010/plain_lite0_cub2010.py', ({LR: 0.01},), lr),
            *(
                Method(f'FNKD, τ = {value}', pair, ({LR: 0.01, tau: value},), lr, needs_teacher=True)
                for value in ('auto', 2, 4, 8, 16)
            ),
            *(
                Method(f'KD, T = {value}', pair, ({**kd, TEMPERATURE: value},), lr, needs_teacher=True, flags=by('kd'))
                for value in (2, 4, 8)
            ),
        ),
        trial_options={},
        final_options=CUB2010_TRIALS,
        note='The teacher was trained on the held-out images, too. Its own row is its accuracy on the test set.',
    )


def controls_cub2010() -> Table:
    """From the settings of FNKD in :func:`cub2010` to those of KD, step by step; nothing is tuned."""
    pair = 'cub2010/fnkd_lite0_cub2010.py'
    soft = {LR: 0.005, TEMPERATURE: 4, WEIGHT: 0.9, HARD: 0.1}

    def control(title: str, options: Options, flags: tuple[str, ...] = by('kd')) -> Method:
        return Method(title, pair, (options,), {}, needs_teacher=True, flags=flags)

    return Table(
        title='From FNKD to KD on CUB-200-2010, EfficientNet-Lite2 → Lite0, 5 epochs',
        teacher='cub2010/plain_lite2_cub2010.py',
        methods=(
            control('FNKD', {LR: 0.005, WEIGHT: 9}, ()),
            control('KD, T = 3, 1 hard + 9 soft', {LR: 0.005, TEMPERATURE: 3, WEIGHT: 1, HARD: 1}),
            control('KD, T = 3, 0.1 hard + 0.9 T² soft', {**soft, TEMPERATURE: 3}),
            control('KD, T = 4, 0.1 hard + 0.9 T² soft', soft),
        ),
        trial_options={},
        cached_views=5,
        note=(
            "FNKD's loss is 1 hard + 9 soft, and its τ is a third of the teacher's mean norm, so its mean temperature "
            'is 3. The learning rate is 0.005. All rows use the same views and the same cached teacher.'
        ),
    )


def cifar100(student: str, teacher: str, epochs: int = 240, title: str = '', note: str = '') -> Table:
    """A pair of the public CIFAR-100 benchmark, each method with its authors' values; nothing is tuned.

    In shorter trainings the milestones and DKD's warm-up are scaled in proportion.
    """

    plain, pair = f'cifar100/plain_{student}_cifar100.py', f'cifar100/fnkd_{student}_from_{teacher}_cifar100.py'

    def smooth(title: str, *smoothing: str) -> Method:
        return Method(title, plain, ({},), {}, flags=smoothed(*smoothing))

    def distilled(title: str, method: str, options: Options | None = None) -> Method:
        return Method(title, pair, (options or {},), {}, needs_teacher=True, flags=by(method))

    share = epochs / 240
    length: Options = {}
    if epochs != 240:
        length = {
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': epochs,
            # Rounded up.
            'param_scheduler.milestones': [math.ceil(m * share) for m in (150, 180, 210)],
        }
    warmup = {} if share == 1 else {'model.head.warmup': 20 * share}
    return Table(
        title=title,
        teacher=f'cifar100/plain_{teacher}_cifar100.py',
        methods=(
            Method('plain', plain, ({},), {}),
            smooth('LSR', 'lsr'),
            smooth('ALSR', 'alsr', 'cifar100'),
            distilled('KD', 'kd_benchmark'),
            distilled("KD, FNKD's weights and T", 'kd_benchmark', {TEMPERATURE: 3, WEIGHT: 1, HARD: 1}),
            distilled('FNKD', 'fnkd'),
            distilled('FNKD, normalize', 'fnkd', {MODE: 'normalize'}),
            distilled('LSKD', 'ls_kd'),
            distilled('NormKD', 'normkd'),
            distilled('DKD', 'dkd_beta2' if student == 'r20' else 'dkd', warmup),
            distilled('DIST', 'dist'),
            distilled('TTM', 'ttm'),
            distilled('WTTM', 'wttm'),
            distilled('TTM by norm', 'fnttm'),
        ),
        trial_options={},
        final_options=length,
        teacher_options=length,
        note=note,
    )


def _presets(title: str, folder: str, teacher: str, student: str, groups: str, note: str = '') -> Table:
    """A pair of the shipped configs as they are; nothing is tuned."""
    plain, pair = f'{folder}/plain_{student}_{folder}.py', f'{folder}/fnkd_{student}_from_{teacher}_{folder}.py'
    taught = {'KD, T = 1': 'kd_t1', 'KD': 'kd', 'FNKD': 'fnkd'}
    return Table(
        title=title,
        teacher=f'{folder}/plain_{teacher}_{folder}.py',
        methods=(
            Method('plain', plain, ({},), {}),
            Method('LSR', plain, ({},), {}, flags=smoothed('lsr')),
            Method('ALSR', plain, ({},), {}, flags=smoothed('alsr', groups)),
            *(Method(name, pair, ({},), {}, needs_teacher=True, flags=by(method)) for name, method in taught.items()),
        ),
        trial_options={},
        note=note,
    )


TABLES: dict[str, Callable[[], Table]] = {
    'digits': digits,
    'cub2010': cub2010,
    'cub2010_small': cub2010_small,
    'sweeps_cub2010': sweeps_cub2010,
    'controls_cub2010': controls_cub2010,
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
    'cub_r18': lambda: _presets(
        'CUB-200-2011, ResNet-50 → ResNet-18', 'cub', 'r50', 'r18', 'cub', "The pair of the paper's Table 1."
    ),
    'cub_r50': lambda: _presets(
        'CUB-200-2011, ResNet-152 → ResNet-50', 'cub', 'r152', 'r50', 'cub', "The pair of the paper's Table 1."
    ),
    'cars': lambda: _presets('Stanford Cars, ResNet-50 → ResNet-18', 'cars', 'r50', 'r18', 'cars_make'),
}
