"""From a config to a Runner that trains it, as ``tools/train.py`` does."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import (
    dataset_classes,
    dicts_in,
    is_distilled,
    merge_options,
    named_dicts,
    plain_config,
    split_options,
)
from fnkd_plugin.mm.hooks.check_classes_hook import CheckClassesHook, check_class_counts
from fnkd_plugin.mm.mix import distill, smooth_labels, teacher_config
from fnkd_plugin.taxonomy.names import read_names

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def mix(cfg: Config, args: Any) -> Config:
    """``--cfg-options`` in ``cfg``, and what ``--label-smoothing`` and ``--teacher`` mix into it.

    Options for the plain model are merged first. Those for what is mixed in, such as ``model.teacher.input_size``, come
    last.

    Raises:
        SetupError: If a flag lacks the one that it belongs to, or what it asks for does not fit.
    """
    if args.label_smoothing_cfg and not args.label_smoothing:
        raise SetupError('--label-smoothing-cfg: give --label-smoothing as well.')
    if (args.distill or args.distill_cfg) and not args.teacher:
        raise SetupError('--distill and its options need a teacher; give --teacher.')
    for flag, options in (('--distill', args.distill_cfg), ('--label-smoothing', args.label_smoothing_cfg)):
        # The parameters of distill() and smooth_labels(), which have flags of their own.
        if reserved := [name for name in ('method', 'teacher') if name in options]:
            raise SetupError(
                f'{flag}-cfg: {reserved[0]} is no option of a method; it is what {flag} or --teacher says.'
            )
    plain, mixed_in = split_options(args.cfg_options) if args.teacher else (args.cfg_options, {})
    merge_options(cfg, plain)
    if args.label_smoothing:
        cfg = smooth_labels(cfg, method=args.label_smoothing, **args.label_smoothing_cfg)
    if args.teacher:
        teachers = [teacher_config(name, checkpoint) for name, checkpoint in args.teacher]
        cfg = distill(cfg, teachers, args.distill or 'fnkd', **args.distill_cfg)
        merge_options(cfg, mixed_in)
    return cfg


def add_default_hooks(cfg: Config) -> None:
    """Exact resumption and plain checkpoints, unless the config sets them (None: off)."""
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.setdefault('reproducible', dict(type='ReproducibleHook'))
    hooks.setdefault('safe_checkpoint', dict(type='SafeCheckpointHook'))
    for name in [name for name, hook in hooks.items() if hook is None]:
        # MMEngine takes None for its own hooks only.
        if name in ('reproducible', 'safe_checkpoint'):
            hooks.pop(name)


def set_loader_defaults(cfg: Config, pin_memory: bool = True, persistent_workers: bool = True) -> None:
    """MMPretrain's defaults of data loaders, where they make sense."""
    for name in _LOADERS:
        loader = cfg.get(name)
        if loader is None:
            continue
        loader.setdefault('pin_memory', pin_memory)
        loader.setdefault('persistent_workers', persistent_workers)
        loader.setdefault('collate_fn', dict(type='default_collate'))
        if not pin_memory or not torch.cuda.is_available():
            loader['pin_memory'] = False
        if not persistent_workers or loader.get('num_workers', 0) == 0:
            loader['persistent_workers'] = False


def check_data_roots(cfg: Config, loaders: Sequence[str] = _LOADERS[:2]) -> None:
    """Say which folder of data is missing, and how to give it.

    Raises:
        SetupError: If a data loader's ``data_root`` does not exist, and its data set cannot download it.
    """
    for name in loaders:
        for path, node in named_dicts(cfg.get(name), name):
            root = node.get('data_root')
            if not root or '://' in root or os.path.exists(root):
                continue
            named = node.get('of', node.get('type'))  # FlippedLabels names the data set that it flips
            kind = DATASETS.get(named) if isinstance(named, str) else named
            if not (hasattr(kind, 'url') or hasattr(kind, 'url_prefix')):  # CIFAR and MNIST fetch themselves
                option = 'data_root' if cfg.get('data_root') == root else f'{path}.data_root'
                raise SetupError(
                    f'{name}: there is no folder {root} with the data of {getattr(kind, "__name__", kind)}. Put the '
                    f'data there, or say where it is: --cfg-options {option}=FOLDER.'
                )


def prepare_cpu_processes(cfg: Config, launcher: str, timeout: timedelta | None = None) -> None:
    """Let several processes train or test on CPUs, which MMEngine's launcher does not.

    It asks for a GPU for each process and names one to DDP; so the process group is made before, and the
    wrapper is told of none.

    Args:
        cfg: Its model wrapper is set.
        launcher: As on the command line.
        timeout: How long one process waits for another; torch's own if None.

    Raises:
        SetupError: If CPUs have no such launcher.
    """
    if launcher == 'none' or torch.cuda.is_available():
        return
    if launcher != 'pytorch':
        raise SetupError(f'--launcher {launcher} needs GPUs; on CPUs use --launcher pytorch (torchrun).')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo', timeout=timeout)
    unused = cfg.get('find_unused_parameters', False)
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)
    cfg.setdefault('model_wrapper_cfg', ConfigDict(wrapper))
    cfg.model_wrapper_cfg['device_ids'] = None


def name_classes(cfg: Config) -> None:
    """Tell a ``Distiller`` what the classes of the training set are called, if they are as many as the student's."""
    names = dataset_classes(cfg)
    if is_distilled(cfg) and names is not None:
        counts = [node.get('num_classes') for node in dicts_in(cfg.model.student)]
        if len(read_names(names, 'training set')) in counts:
            cfg.model.setdefault('classes', names)


def build_runner(cfg: Config) -> Runner:
    """Build the Runner; beside the dumped config, dump the plain one that stock tools test its checkpoints with.

    Raises:
        SetupError: If labels are softened by groups of other classes than the model's, or a teacher's classes are not
            the student's; for names that only the data tell, when training starts.
    """
    name_classes(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    check_class_counts(runner.model)
    runner.register_hook(CheckClassesHook())
    if is_distilled(cfg) and is_main_process():
        dump_plain_config(cfg, runner.work_dir)
    return runner


def dump_plain_config(cfg: Config, folder: str | Path) -> Path:
    """Write the student's config as ``plain_<config>.py`` into ``folder``, for one process again."""
    plain = plain_config(cfg)
    for key, value in dict(load_from=None, resume=False, launcher='none').items():
        plain[key] = value
    plain._cfg_dict.pop('model_wrapper_cfg', None)
    path = Path(folder) / f'plain_{Path(cfg.filename or "config").stem}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f'.{os.getpid()}.py')
    plain.dump(partial)
    partial.replace(path)
    return path


def merge_arguments(cfg: Config, args: Any) -> None:
    """Flags of ``tools/train.py`` (MMPretrain's) into the config, ``--cfg-options`` apart.

    Raises:
        SetupError: If a flag asks for what this machine or config has not.
    """
    cfg.launcher = args.launcher
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        mixed_in = [args.label_smoothing, (args.distill or 'fnkd') if args.teacher else None]
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
                '--auto-scale-lr: the config does not say for which batch size its learning rate is meant; give '
                '--cfg-options auto_scale_lr.base_batch_size=N.'
            )
        cfg.auto_scale_lr['enable'] = True
    if args.evaluate_teacher:
        if not is_distilled(cfg):
            raise SetupError('--evaluate-teacher: the config has no teacher; its model is no Distiller.')
        cfg.setdefault('default_hooks', ConfigDict())['evaluate_teacher'] = dict(type='EvaluateTeacherHook')
