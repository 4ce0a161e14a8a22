"""Prepares a config for training and builds its Runner, as ``tools/train.py`` does."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import dataset_classes, dataset_type, dicts_in, is_distilled, named_dicts, plain_config
from fnkd_plugin.mm.distill_config import add_run_hooks, name_groups
from fnkd_plugin.mm.hooks.check_classes_hook import check_class_counts
from fnkd_plugin.taxonomy.names import read_names

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def set_loader_defaults(cfg: Config, pin_memory: bool = True, persistent_workers: bool = True) -> None:
    """Set MMPretrain's defaults of data loaders; memory is pinned with CUDA only."""
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
    """Check that the folders of the data exist.

    Raises:
        SetupError: If a data loader's ``data_root`` does not exist, and its data set cannot download it.
    """
    for name in loaders:
        for path, node in named_dicts(cfg.get(name), name):
            root = node.get('data_root')
            if not root or '://' in root or os.path.exists(root):
                continue
            kind = dataset_type(node)
            if not (hasattr(kind, 'url') or hasattr(kind, 'url_prefix')):  # CIFAR and MNIST are downloaded
                option = 'data_root' if cfg.get('data_root') == root else f'{path}.data_root'
                raise SetupError(
                    f'{name}: there is no folder {root} with the data of {getattr(kind, "__name__", kind)}. Put the '
                    f'data there, or give its folder: --cfg-options {option}=FOLDER.'
                )


def prepare_cpu_processes(cfg: Config, launcher: str, timeout: timedelta | None = None) -> None:
    """Prepare distributed training or testing on CPUs.

    MMEngine's launcher requires a GPU for each process and passes it to DDP. So the process group is made here, and the
    config's DDP wrapper gets no device.

    Args:
        cfg: Changed in place.
        launcher: As on the command line.
        timeout: Of collective operations; None for torch's default.

    Raises:
        SetupError: If the launcher needs GPUs.
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
    """Pass the training set's class names to ``Distiller`` and ``ALSRLoss``, in place."""
    name_groups(cfg)
    names = dataset_classes(cfg)
    if is_distilled(cfg) and names is not None:
        counts = [node.get('num_classes') for node in dicts_in(cfg.model.student)]
        if len(read_names(names, 'training set')) in counts:
            cfg.model.setdefault('classes', names)


def build_runner(cfg: Config) -> Runner:
    """Build the Runner; for a distilled config, write the plain one, which tests its checkpoints with stock tools.

    Raises:
        SetupError: If the classes of label groups or of the teacher are not the student's. Names that only the built
            data set has are compared when training starts.
    """
    add_run_hooks(cfg)
    name_classes(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    check_class_counts(runner.model)
    if is_distilled(cfg) and is_main_process():
        dump_plain_config(cfg, runner.work_dir)
    return runner


def dump_plain_config(cfg: Config, folder: str | Path) -> Path:
    """Write the student's config for a single process to ``plain_<config>.py`` in ``folder``; returns the path."""
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
