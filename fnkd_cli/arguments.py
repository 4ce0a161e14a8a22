"""Command lines of the tools for configs.

Only the standard library is imported, so that ``--help`` and mistakes are answered at once.
"""

import argparse
import functools
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
DTYPES = ('float16', 'float32')
SPLITS = ('train', 'val', 'test')


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: similar ones; without any, those that exist if they are few."""
    by_lower = {other.lower(): other for other in known}
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=3)]
    if near:
        return f'; did you mean {" or ".join(near)}?'
    return f'; known: {", ".join(by_lower.values())}.' if len(by_lower) <= 20 else '.'


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, with similar names."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The command line, all of it."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f'unknown argument {unknown[0]}{did_you_mean(unknown[0], flags)}')
        return found

    def error(self, message: str) -> NoReturn:
        """Print the message, and leave with 2."""
        print(f'error: {message} ({self.prog} --help)', file=sys.stderr)
        sys.exit(2)


def _pair(text: str) -> str:
    if '=' not in text:
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return text


def _add_options(parser: Any, flag: str, text: str) -> None:
    # MMEngine's DictAction parses the values once MMEngine is imported.
    parser.add_argument(flag, nargs='+', action='extend', type=_pair, default=[], metavar='KEY=VALUE', help=text)


def _add_launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--launcher', **_one_of(LAUNCHERS), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def _one_of(names: tuple[str, ...]) -> dict[str, Any]:
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f'unknown value {text!r}{did_you_mean(text, names)}')
        return text

    return dict(choices=names, type=parse)


@functools.cache
def presets(*types: str) -> tuple[str, ...]:
    """Names of the methods in fnkd_plugin/presets.py, which is plain data; the package is not imported."""
    spec = importlib.util.find_spec('fnkd_plugin')
    assert spec is not None and spec.submodule_search_locations
    found = runpy.run_path(os.path.join(spec.submodule_search_locations[0], 'presets.py'))
    return tuple(name for name, preset in found.items() if isinstance(preset, dict) and preset.get('type') in types)


class _CheckpointOfTeacher(argparse.Action):
    """Adds the file to the last ``--teacher`` before it."""

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, file: Any, *_: Any) -> None:
        if not args.teacher or args.teacher[-1][1] is not None:
            parser.error(f'--teacher-checkpoint {file}: it comes after the --teacher that it belongs to')
        args.teacher[-1] = (args.teacher[-1][0], file)


def train(prog: str | None = None) -> Parser:
    """Of ``fnkd train CONFIG`` and ``tools/train.py``."""
    parser = Parser(
        prog, description="Train any MMPretrain config, with MMPretrain's own flags, a teacher or smoothed labels."
    )
    parser.add_argument('config', help='config file, or mmpretrain::FOLDER/FILE.py; it is Python and runs when read')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (work_dirs/<config>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='FILE',
        help='continue from a checkpoint, by default the latest of the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    parser.add_argument('--compile', action='store_true', help='compile student, teacher and loss (docs/speed.md)')
    parser.add_argument('--no-validate', action='store_true', help='no evaluation while training')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size')
    parser.add_argument('--no-pin-memory', action='store_true', help='no pinned memory in data loaders')
    parser.add_argument('--no-persistent-workers', action='store_true', help='new workers each epoch')
    parser.add_argument(
        '--evaluate-teacher', action='store_true', help="the teacher's own result on the validation set before epoch 1"
    )
    parser.add_argument('--verbose', action='store_true', help="MMEngine's whole log in the terminal")
    _add_options(
        parser,
        '--cfg-options',
        "overrides, written for the plain model: model.backbone.depth=18 reaches a distilled config's student",
    )
    group = parser.add_argument_group('mixed into the config')
    group.add_argument(
        '--teacher',
        action='append',
        type=lambda name: (name, None),
        default=[],
        metavar='NAME',
        help='timm:MODEL, hf:FOLDER_OR_ID, cached:FOLDER, a config file or a name of the model zoo; several make an '
        'ensemble',
    )
    group.add_argument(
        '--teacher-checkpoint',
        action=_CheckpointOfTeacher,
        metavar='FILE',
        help='weights of the last --teacher (the published ones)',
    )
    group.add_argument(
        '--distill',
        **_one_of(presets('DistillHead')),
        help='distillation method (fnkd); replaces that of a distilled config',
    )
    group.add_argument(
        '--label-smoothing',
        **_one_of(presets('LSRLoss', 'ALSRLoss')),
        help='replaces the loss on labels; can be combined with --teacher',
    )
    _add_options(group, '--distill-cfg', 'its options: hard_weight=0.5 warmup=0.1')
    _add_options(group, '--label-smoothing-cfg', 'its options: groups.rule=last_word')
    _add_launcher(parser)
    return parser


def cache(prog: str | None = None) -> Parser:
    """Of ``fnkd cache`` and ``tools/cache_teacher.py``."""
    parser = Parser(
        prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Cache the predictions of a distilled config's teacher on every training image.\n\n"
        'The same command continues where one was stopped. If the config mixes images (Mixup, CutMix), its batches\n'
        'are fixed, and the teacher sees the mixed images. On several processes: torchrun --nproc_per_node 2\n'
        'tools/cache_teacher.py ... --launcher pytorch',
    )
    parser.add_argument('config', help='a distilled config, whose teacher is live; it is Python and runs when read')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the cache')
    parser.add_argument(
        '--views', type=_positive, default=1, help='augmentations of each image; epochs repeat them (1)'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the augmentations; no training run repeats them (0)'
    )
    parser.add_argument('--dtype', **_one_of(DTYPES), default=DTYPES[0], help='of the stored logits (float16)')
    parser.add_argument(
        '--top-k',
        type=int,
        metavar='K',
        help='keep only the K largest logits, for KD and FNKD (docs/cache.md has the error)',
    )
    parser.add_argument('--batch-size', type=_positive, help="images the teacher sees at once (the config's)")
    _add_options(parser, '--cfg-options', 'as in tools/train.py')
    _add_launcher(parser)
    return parser


def analyze(prog: str | None = None) -> Parser:
    """Of ``fnkd analyze`` and ``tools/analyze.py``."""
    parser = Parser(
        prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Analyse a classifier's feature norms and label noise: one HTML page, and its numbers as JSON.\n\n"
        "Any single-label config, plain or distilled (then its student, and its teacher if that one's weights exist).",
    )
    parser.add_argument('config', help='config file; it is Python and runs when read')
    parser.add_argument('checkpoint', help="the classifier's weights")
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for the page and the JSON files')
    parser.add_argument('--split', **_one_of(SPLITS), default='val', help='which images (val)')
    parser.add_argument(
        '--teacher', metavar='NAME', help='to compare with: timm:MODEL, hf:FOLDER_OR_ID, a config file, ...'
    )
    parser.add_argument(
        '--teacher-checkpoint', metavar='FILE', help="its weights; alone, those of a distilled config's teacher"
    )
    parser.add_argument(
        '--groups', help='A(x): cub, cifar100, cars_make, cars_body or a file (see fnkd_plugin.taxonomy)'
    )
    parser.add_argument('--tau', type=float, help="FNKD's tau (the config's, or a third of the mean norm)")
    parser.add_argument('--temperature', type=float, help="KD's temperature (the config's, or 4)")
    parser.add_argument(
        '--flip', type=float, nargs='+', default=[], metavar='RATE', help='judge labels of which this share is flipped'
    )
    parser.add_argument('--classes', nargs='+', metavar='CLASS', help='names or numbers of the classes to show')
    parser.add_argument('--seed', type=int, default=0, help='of the flips (0)')
    _add_options(parser, '--cfg-options', 'as in tools/train.py')
    return parser


def test(prog: str | None = None) -> Parser:
    """Of ``fnkd test`` and ``tools/test.py``; the flags are those of MMPretrain's test tool, which takes the result."""
    parser = Parser(
        prog,
        description='Test a checkpoint of any config; of a distilled one the student alone, without its teacher.',
    )
    parser.add_argument('config', help='config file; it is Python and runs when read')
    parser.add_argument('checkpoint', help="the student's weights")
    parser.add_argument('--work-dir', help='folder of the log (work_dirs/<config>)')
    parser.add_argument('--out', metavar='FILE', help='write predictions or metrics: .pkl, .json or .yml')
    parser.add_argument('--out-item', **_one_of(('metrics', 'pred')), help='which of them (pred)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation (the config's, or flips)")
    parser.add_argument('--show-dir', metavar='DIR', help='draw predictions into this folder')
    parser.add_argument('--show', action='store_true', help='draw predictions in a window')
    parser.add_argument('--interval', type=_positive, default=1, help='draw every n-th image (1)')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that a window stays open (2)')
    parser.add_argument('--no-pin-memory', action='store_true', help='no pinned memory in data loaders')
    parser.add_argument('--verbose', action='store_true', help="MMEngine's whole log in the terminal")
    _add_options(parser, '--cfg-options', 'as in tools/train.py')
    _add_launcher(parser)
    return parser


def publish(prog: str | None = None) -> Parser:
    """Of ``fnkd publish`` and ``tools/publish_model.py``."""
    parser = Parser(
        prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Publish a checkpoint: the student's weights alone, as {name}_{date}-{sha256[:8]}.pth or "
        '.safetensors.\n\nIt loads in stock MMPretrain (.pth) without this plugin, and with --timm in\n'
        'timm.create_model(checkpoint_path=...).',
    )
    parser.add_argument('source', metavar='IN', help='the checkpoint; it is read as data')
    parser.add_argument(
        'out',
        metavar='OUT',
        help='a folder, or a name that may end in .pth or .safetensors (which MMPretrain cannot read)',
    )
    parser.add_argument('--ema', action='store_true', help='the averaged weights, not the trained ones')
    parser.add_argument('--timm', action='store_true', help="timm's own keys, which a TimmStudent has already")
    return parser


PARSERS: dict[str, Callable[[str | None], Parser]] = dict(
    train=train, test=test, cache=cache, analyze=analyze, publish=publish
)
"""By the module of ``fnkd_plugin.cli`` that runs the command."""


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} must be at least 1')
    return number
