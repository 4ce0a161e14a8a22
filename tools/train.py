#!/usr/bin/env python
"""Train any MMPretrain config with MMPretrain's own flags; mix a teacher or smoothed labels into a plain one."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fnkd_plugin  # noqa: F401
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm import training
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.mix import METHODS, SMOOTHINGS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or mmpretrain::FOLDER/FILE.py; it is Python and runs when read')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (work_dirs/<config>)')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='FILE', help='go on from a checkpoint, the latest of the work dir'
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    parser.add_argument('--no-validate', action='store_true', help='no evaluation while training')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size')
    parser.add_argument('--no-pin-memory', action='store_true', help='no pinned memory in data loaders')
    parser.add_argument('--no-persistent-workers', action='store_true', help='new workers each epoch')
    parser.add_argument(
        '--evaluate-teacher', action='store_true', help="the teacher's own result on the validation set before epoch 1"
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help="overrides, written for the plain model: model.backbone.depth=18 reaches a distilled config's student",
    )
    add_mixing_arguments(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


class CheckpointOfTeacher(argparse.Action):
    """Adds the file to the last ``--teacher`` before it."""

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, file: Any, *_: Any) -> None:
        if not args.teacher or args.teacher[-1][1] is not None:
            parser.error(f'--teacher-checkpoint {file}: it comes after the --teacher that it belongs to')
        args.teacher[-1] = (args.teacher[-1][0], file)


def add_mixing_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that change a plain config."""
    group = parser.add_argument_group('mixed into a plain config')
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
        action=CheckpointOfTeacher,
        metavar='FILE',
        help='weights of the last --teacher (the published ones)',
    )
    group.add_argument('--distill', choices=METHODS, help='method (fnkd)')
    group.add_argument('--label-smoothing', choices=SMOOTHINGS, help='in place of the loss; with a teacher, too')
    for flag, example in (('--distill-cfg', 'tau=8 hard_weight=0.5'), ('--label-smoothing-cfg', 'groups=cub')):
        group.add_argument(
            flag, nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help=f'its options: {example}'
        )


def main(argv: list[str] | None = None) -> None:
    """Read the config, merge and mix in the flags, train."""
    args = parse_args(argv)
    cfg = training.mix(load_config(args.config), args)
    training.merge_arguments(cfg, args)
    training.add_default_hooks(cfg)
    training.check_data_roots(cfg)
    training.set_loader_defaults(cfg, not args.no_pin_memory, not args.no_persistent_workers)
    training.prepare_cpu_processes(cfg, args.launcher)
    training.build_runner(cfg).train()


if __name__ == '__main__':
    try:
        main()
    except (SetupError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
