#!/usr/bin/env python
"""Analyse a classifier's feature norms and label noise: one HTML page, and its numbers as JSON.

    python tools/analyze.py CONFIG CHECKPOINT --out DIR --split train --groups cub --flip 0.1

Any single-label config, plain or distilled (then its student, and its teacher where that one's weights are there).
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.results import surroundings

import fnkd_plugin  # noqa: F401
from fnkd_plugin.analysis.collect import Policy, calibrate_tau
from fnkd_plugin.analysis.compensations import STRENGTHS
from fnkd_plugin.analysis.report import headlines, write_report
from fnkd_plugin.analysis.study import Question, study
from fnkd_plugin.analysis.subject import SPLITS, build_subject
from fnkd_plugin.errors import SetupError, check_number
from fnkd_plugin.mm.config import dicts_in, is_distilled, load_config
from fnkd_plugin.taxonomy import taxonomy_of


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file; it is Python and runs when read')
    parser.add_argument('checkpoint', help="the classifier's weights")
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for the page and the JSON files')
    parser.add_argument('--split', choices=SPLITS, default='val', help='which images (val)')
    parser.add_argument('--teacher-config', metavar='FILE', help='a teacher to compare with, a config of MMPretrain')
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
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='as in tools/train.py'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Analyse, write the files, and print the headlines."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    console = Console()
    init_default_scope('mmpretrain')
    cfg = load_config(args.config, args.cfg_options)
    subject = build_subject(cfg, args.checkpoint, args.split, args.teacher_config, args.teacher_checkpoint)
    if subject.teacher is None and is_distilled(cfg):
        console.print(
            "The teacher's checkpoint is not there, or it is a cached teacher, which knows its training images alone; "
            '--teacher-checkpoint FILE names it, --teacher-config FILE another. Going on without.'
        )
    neighbours = None
    if args.groups is not None:
        taxonomy = taxonomy_of(args.groups)
        taxonomy.check_classes(subject.classes, 'analysis: --groups: the data set')
        neighbours = taxonomy.neighbours
    question = Question(neighbours, args.flip, _class_indices(args.classes, subject.classes), args.seed)
    temperature, tau, mode = _policy_options(cfg, args)
    with _progress(console) as progress:
        bar = progress.add_task('looking at images', total=len(subject.labels))
        policy = Policy(temperature, calibrate_tau(subject, args.seed) if tau == 'auto' else tau, mode)
        found = study(subject, policy, question, lambda count: progress.advance(bar, count))
    sentences = headlines(found.numbers)
    made = dict(
        title=f'{Path(args.config).stem}, {Path(args.checkpoint).name}',
        command=shlex.join(['python', 'tools/analyze.py', *argv]),
        split=args.split,
        seed=args.seed,
        strengths=STRENGTHS,
        headlines=sentences,
        **surroundings(),
    )
    files = write_report(args.out, subject, found, made)
    for sentence in sentences:
        console.print(f'- {sentence}', highlight=False, markup=False)
    for path in files.values():
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn())
    return Progress(TextColumn('{task.description}'), *columns, console=console)


def _policy_options(cfg: Config, args: argparse.Namespace) -> tuple[float, Any, str]:
    """T, tau (or 'auto') and the mode: the command line's, else the config's soft losses', else the defaults."""
    temperature, tau, mode = 4.0, 'auto', 'clip'
    for node in dicts_in(cfg.model.get('head') if is_distilled(cfg) else None):
        kind = getattr(node.get('type'), '__name__', node.get('type'))
        if kind == 'KDLoss':
            temperature = node.get('temperature', temperature)
        elif kind == 'FNKDLoss':
            tau, mode = node.get('tau', tau), node.get('mode', mode)
    if args.temperature is not None:
        temperature = check_number('analysis', '--temperature', args.temperature, positive=True)
    if args.tau is not None:
        tau = check_number('analysis', '--tau', args.tau, positive=True)
    return temperature, tau, mode


def _class_indices(wanted: list[str] | None, classes: list[str]) -> list[int] | None:
    if wanted is None:
        return None
    known = {**{str(i): i for i in range(len(classes))}, **{name: i for i, name in enumerate(classes)}}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SetupError(
            f'analysis: --classes: {", ".join(unknown)} is no class; classes are numbers of 0 to {len(classes) - 1} or '
            f'names such as {", ".join(classes[:3])}.'
        )
    return [known[name] for name in wanted]


if __name__ == '__main__':
    try:
        main()
    except (SetupError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
