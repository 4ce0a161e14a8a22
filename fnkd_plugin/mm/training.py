"""From a config to a Runner that trains it, as ``tools/train.py`` does."""

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
from fnkd_plugin.mm.hooks.check_classes_hook import check_class_counts
from fnkd_plugin.mm.mix import add_run_hooks, name_groups
from fnkd_plugin.taxonomy.names import read_names

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


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
            if not (hasattr(kind, 'url') or hasattr(kind, 'url_prefix')):  # CIFAR and MNIST fetch themselves
                option = 'data_root' if cfg.get('data_root') == root else f'{path}.data_root'
                raise SetupError(
                    f'{name}: there is no folder {root} with the data of {getattr(kind, "__name__", kind)}. Put the '
                    f'data there, or give its folder: --cfg-options {option}=FOLDER.'
                )


def prepare_cpu_processes(cfg: Config, launcher: str, timeout: timedelta | None = None) -> None:
    """Let several processes train or test on CPUs, which MMEngine's launcher does not.

    That requires a GPU for each process and passes it to DDP; so the process group is made here, and DDP gets no
    device.

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
    """Pass the names of the training set's classes to what compares or groups them: ``Distiller`` and ``ALSRLoss``."""
    name_groups(cfg)
    names = dataset_classes(cfg)
    if is_distilled(cfg) and names is not None:
        counts = [node.get('num_classes') for node in dicts_in(cfg.model.student)]
        if len(read_names(names, 'training set')) in counts:
            cfg.model.setdefault('classes', names)


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, and write the plain config of a distilled one, to test its checkpoints by stock tools.

    Raises:
        SetupError: If labels are softened by groups of other classes than the model's, or a teacher's classes are not
            the student's; for names that only the data hold, when training starts.
    """
    add_run_hooks(cfg)
    name_classes(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    check_class_counts(runner.model)
    if is_distilled(cfg) and is_main_process():
        dump_plain_config(cfg, runner.work_dir)
    return runner


def dump_plain_config(cfg: Config, folder: str | Path) -> Path:
    """Write the student's config, for a single process, to ``plain_<config>.py`` in ``folder``."""
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
