"""``fnkd train CONFIG``: any MMPretrain config, with a teacher or smoothed labels mixed in."""

import argparse
import re
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from fnkd_plugin.cli.mistakes import explained
from fnkd_plugin.cli.options import parsed
from fnkd_plugin.cli.progress_hook import ProgressHook
from fnkd_plugin.cli.terminal import quiet, silent_start
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm import training
from fnkd_plugin.mm.config import is_distilled, is_distilled_key, load_config, merge_options
from fnkd_plugin.mm.distill_config import distill, smooth_labels, teacher_config

# Options of the hard-label loss, of models with and without a head.
_LOSS = re.compile(r'model\.(student\.)?(head\.)?loss\.')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return parsed('train', argv)


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
        if (mixes and is_distilled_key(key)) or (args.label_smoothing and _LOSS.match(key))
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
    if args.compile:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), dict(type='CompileHook')]
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
    run(cfg, Path(cfg.work_dir).name, args.verbose)


def run(cfg: Config, title: str, verbose: bool = False, summary: bool = True) -> Runner:
    """Train a config with a progress bar; MMEngine's log goes to its file.

    Args:
        cfg: What is trained.
        title: Of the progress.
        verbose: Show MMEngine's log instead.
        summary: Print what is trained before, and the results after.
    """
    with explained(cfg):
        if verbose:
            runner = training.build_runner(cfg)
            runner.train()
            return runner
        with silent_start():
            runner = training.build_runner(cfg)
        quiet(runner, summary)
        hook = ProgressHook(title)
        runner.register_hook(hook)
        try:
            runner.train()
        finally:
            hook.close()
            _stop_workers(runner)
    return runner


def _stop_workers(runner: Runner) -> None:
    """End the data loaders' processes; when the garbage collector does it, torch waits 5 s for each."""
    for loop in (runner._train_loop, runner._val_loop):
        workers = getattr(getattr(loop, 'dataloader', None), '_iterator', None)  # persistent ones
        if workers is not None and hasattr(workers, '_shutdown_workers'):
            workers._shutdown_workers()
