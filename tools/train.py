#!/usr/bin/env python
"""Train any MMPretrain config, plain or distilled, with MMPretrain's own flags."""

import argparse
import os
import sys
from pathlib import Path

from mmengine.config import DictAction

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fnkd_plugin  # noqa: F401
from fnkd_plugin.config import merge_options
from fnkd_plugin.engine import training
from fnkd_plugin.errors import SetupError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file; it is Python and runs when read')
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
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main(argv: list[str] | None = None) -> None:
    """Read the config, merge the flags, train."""
    args = parse_args(argv)
    cfg = training.load_config(args.config)
    merge_options(cfg, args.cfg_options)
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
