#!/usr/bin/env python
"""Train any MMPretrain config with MMPretrain's own flags; mix a teacher or smoothed labels into a plain one."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fnkd_plugin  # noqa: F401
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm import training
from fnkd_plugin.mm.config import is_distilled, is_mixed_in, load_config, merge_options
from fnkd_plugin.mm.mix import METHODS, SMOOTHINGS, distill, smooth_labels, teacher_config

# Options of the hard-label loss, of models with and without a head.
_LOSS = re.compile(r'model\.(student\.)?(head\.)?loss\.')


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
    """Flags that mix a teacher or smoothed labels into a config."""
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
        action=CheckpointOfTeacher,
        metavar='FILE',
        help='weights of the last --teacher (the published ones)',
    )
    group.add_argument('--distill', choices=METHODS, help='method (fnkd), also for the pair of a distilled config')
    group.add_argument('--label-smoothing', choices=SMOOTHINGS, help='in place of the loss; with a teacher, too')
    examples = {'--distill-cfg': 'hard_weight=0.5 warmup=20', '--label-smoothing-cfg': 'groups.rule=last_word'}
    for flag, example in examples.items():
        group.add_argument(
            flag, nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help=f'its options: {example}'
        )


def read_config(args: argparse.Namespace) -> Config:
    """The config file, with ``--cfg-options`` and what ``--label-smoothing``, ``--teacher`` and ``--distill`` mix in.

    Options for the plain model are merged first, those for what is mixed in, such as ``model.teacher.input_size`` or
    ``model.head.loss.eps``, last.

    Raises:
        SetupError: If a flag lacks the one that it belongs to, or does not fit the config.
    """
    if args.label_smoothing_cfg and not args.label_smoothing:
        raise SetupError('--label-smoothing-cfg: give --label-smoothing as well.')
    for flag, options in (('--distill', args.distill_cfg), ('--label-smoothing', args.label_smoothing_cfg)):
        # Parameters of distill() and smooth_labels() that have flags of their own.
        if reserved := [name for name in ('method', 'teacher') if name in options]:
            raise SetupError(f'{flag}-cfg: {reserved[0]} is not an option of a method; use {flag} or --teacher.')
    mixes = bool(args.teacher or args.distill or args.distill_cfg)
    mixed_in = {
        key: value
        for key, value in args.cfg_options.items()
        if (mixes and is_mixed_in(key)) or (args.label_smoothing and _LOSS.match(key))
    }
    cfg = load_config(args.config, {key: value for key, value in args.cfg_options.items() if key not in mixed_in})
    if args.label_smoothing:
        cfg = smooth_labels(cfg, method=args.label_smoothing, **args.label_smoothing_cfg)
    if mixes:
        if not args.teacher and not is_distilled(cfg):
            raise SetupError('--distill and its options need a teacher; give --teacher.')
        teachers = [teacher_config(name, checkpoint) for name, checkpoint in args.teacher] or None
        cfg = distill(cfg, teachers, args.distill or 'fnkd', **args.distill_cfg)
    merge_options(cfg, mixed_in)
    return cfg


def merge_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Merge MMPretrain's own flags, other than ``--cfg-options``.

    Raises:
        SetupError: If a flag needs what this machine or config lacks.
    """
    cfg.launcher = args.launcher
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        mixed_in = [args.label_smoothing, args.distill or ('fnkd' if args.teacher else None)]
        cfg.work_dir = str(Path('work_dirs') / '_'.join([*filter(None, mixed_in), Path(args.config).stem]))
    if args.amp:
        if not torch.cuda.is_available():
            raise SetupError("--amp needs a GPU (MMEngine's AmpOptimWrapper refuses CPUs); train without it.")
        cfg.optim_wrapper['type'] = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise SetupError(
                '--auto-scale-lr: the config does not give the batch size of its learning rate; give '
                '--cfg-options auto_scale_lr.base_batch_size=N.'
            )
        cfg.auto_scale_lr['enable'] = True
    if args.evaluate_teacher:
        if not is_distilled(cfg):
            raise SetupError('--evaluate-teacher: the config has no teacher; its model is not a Distiller.')
        cfg.setdefault('default_hooks', ConfigDict())['evaluate_teacher'] = dict(type='EvaluateTeacherHook')


def main(argv: list[str] | None = None) -> None:
    """Train."""
    args = parse_args(argv)
    cfg = read_config(args)
    merge_arguments(cfg, args)
    training.check_data_roots(cfg)
    training.set_loader_defaults(cfg, not args.no_pin_memory, not args.no_persistent_workers)
    training.prepare_cpu_processes(cfg, args.launcher)
    training.build_runner(cfg).train()


if __name__ == '__main__':
    try:
        main()
    except (SetupError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
