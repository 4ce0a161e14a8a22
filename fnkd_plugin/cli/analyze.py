"""``fnkd analyze``: a classifier's feature norms and label noise as one HTML page, and its numbers as JSON."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from fnkd_plugin.analysis.collect import Policy, calibrate_tau
from fnkd_plugin.analysis.compensations import STRENGTHS
from fnkd_plugin.analysis.report import headlines, write_report
from fnkd_plugin.analysis.study import StudyOptions, study
from fnkd_plugin.analysis.subject import build_subject
from fnkd_plugin.cli.doctor import surroundings
from fnkd_plugin.cli.mistakes import explained
from fnkd_plugin.cli.options import parsed
from fnkd_plugin.cli.terminal import Bar, console, quiet_logger
from fnkd_plugin.errors import SetupError, check_number
from fnkd_plugin.mm.config import dicts_in, is_distilled, load_config
from fnkd_plugin.taxonomy import taxonomy_of


def main(argv: list[str] | None = None) -> None:
    """Analyse, write the files, and print the headlines."""
    argv = sys.argv[1:] if argv is None else argv
    args = parsed('analyze', argv)
    quiet_logger()
    init_default_scope('mmpretrain')
    cfg = load_config(args.config, args.cfg_options)
    with explained(cfg):
        subject = build_subject(cfg, args.checkpoint, args.split, args.teacher, args.teacher_checkpoint)
    if subject.teacher is None and is_distilled(cfg):
        console.print(
            "The teacher's checkpoint is not there, or it is a cached teacher, for training images only; "
            '--teacher-checkpoint FILE names it, --teacher NAME another. Going on without.'
        )
    neighbours = None
    if args.groups is not None:
        taxonomy = taxonomy_of(args.groups)
        taxonomy.check_classes(subject.classes, 'analysis: --groups: the data set')
        neighbours = taxonomy.neighbours
    options = StudyOptions(neighbours, args.flip, _class_indices(args.classes, subject.classes), args.seed)
    temperature, tau, mode = _policy_options(cfg, args)
    bar = Bar('analysing', len(subject.labels))
    try:
        policy = Policy(temperature, calibrate_tau(subject, args.seed) if tau == 'auto' else tau, mode)
        columns, numbers = study(subject, policy, options, bar.advance)
    finally:
        bar.close()
    sentences = headlines(numbers)
    made = dict(
        title=f'{Path(args.config).stem}, {Path(args.checkpoint).name}',
        command=shlex.join(['python', 'tools/analyze.py', *argv]),
        split=args.split,
        seed=args.seed,
        strengths=STRENGTHS,
        headlines=sentences,
        **surroundings(),
    )
    files = write_report(args.out, subject, columns, numbers, made)
    for sentence in sentences:
        console.print(f'- {sentence}', markup=False)
    for path in files.values():
        console.print(str(path), markup=False)


def _policy_options(cfg: Config, args: argparse.Namespace) -> tuple[float, Any, str]:
    """T, tau (or 'auto') and the mode: the command line's, else the config's soft losses', else the defaults."""
    temperature, mode = 4.0, 'normalize'
    tau: Any = 'auto'
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
            f'analysis: --classes: {", ".join(unknown)} is not a class; classes are numbers from 0 to '
            f'{len(classes) - 1} or names such as {", ".join(classes[:3])}.'
        )
    return [known[name] for name in wanted]
