"""Accuracy of students trained with caches of the k largest logits, and of all logits.

On CUB-200-2010 with 200 classes. The caches of the k largest logits are made from the cache of all, so they have the
same predictions. Each training has one thread, and there are as many at a time as cores.
"""

import argparse
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.job import Job, available_cores, start
from experiments.job import run as train
from experiments.results import measure
from mmengine.registry import init_default_scope
from rich.progress import track

from fnkd_plugin.cache.build import Source, fill, share
from fnkd_plugin.cache.store import rows_of
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.replay.seeded_dataset import Replay

_CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'cub2010'
_METHODS = {
    'KD, T = 4': "dict(type='DistillHead', soft_loss=dict(type='KDLoss', loss_weight=0.9), hard_weight=0.1)",
    "FNKD, τ = 'auto'": "dict(type='DistillHead', soft_loss=dict(type='FNKDLoss'))",
}
_TOP = (None, 100, 50, 20, 10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('--teacher', type=Path, help='the last checkpoint of configs/cub2010/plain_lite2_cub2010.py')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/top_k_accuracy'))
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--seeds', type=int, default=3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train and test each method, k and seed."""
    if args.teacher is None:
        raise SystemExit('top_k_accuracy: --teacher FILE is missing')
    folder = args.work_dir.resolve()
    caches = _caches(args, folder)
    jobs = [
        (method, k, seed, _job(folder, method, k, caches[k], seed, args.epochs))
        for seed in range(args.seeds)
        for k in _TOP
        for method in _METHODS
    ]
    os.environ.update(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', GOMP_SPINCOUNT='0')
    (folder / 'logs').mkdir(exist_ok=True)
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(available_cores(), spawn, start, (folder / 'logs',)) as pool:
        running = [pool.submit(train, job) for *_, job in jobs]
        for future in track(as_completed(running), 'training', total=len(jobs)):
            future.result()
    rows = [dict(method=method, k=k, seed=seed, **measure(job.predictions, None)) for method, k, seed, job in jobs]
    return {'epochs': args.epochs, 'seeds': args.seeds, 'rows': rows}


def _caches(args: argparse.Namespace, folder: Path) -> dict[int | None, Path]:
    """A cache for each k, with one view for each epoch."""
    init_default_scope('mmpretrain')
    cfg = load_config(_CONFIGS / 'fnkd_lite0_cub2010.py')
    cfg.model.teacher.checkpoint = str(args.teacher)
    found: dict[int | None, Path] = {}
    for k in _TOP:
        source = Source(cfg, Replay(0, args.epochs), torch.device('cpu'), top_k=k)
        found[k] = folder / f'cache_{k or "all"}'
        store = source.open_store(found[k])
        if k is None:
            every = store
            fill(source, store, share(store), cfg.train_dataloader.batch_size)
            continue
        origin = None if every.origin is None else torch.from_numpy(every.origin.copy())
        for view, first, end in track(list(store.pending()), f'the {k} largest'):
            rows = every.lookup(np.full(end - first, view), np.arange(first, end))
            norms, logits = (torch.from_numpy(rows[name].astype('f4')) for name in ('norm', 'logits'))
            store.write(view, first, rows_of(store.row_type, rows['pixels'], norms, logits, origin))
    return found


def _job(folder: Path, method: str, k: int | None, cache: Path, seed: int, epochs: int) -> Job:
    name = f'{method.split(",")[0].lower()}_{k or "all"}_{seed}'
    config = folder / f'{name}.py'
    config.write_text(
        f'_base_ = {str(_CONFIGS / "plain_lite0_cub2010.py")!r}\n'
        'model = dict(\n'
        "    _delete_=True,\n    type='Distiller',\n    student={{_base_.model}},\n"
        f"    teacher=dict(type='CachedTeacher', path={str(cache)!r}),\n"
        f'    head={_METHODS[method]},\n)\n'
    )
    options = {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'param_scheduler.1.T_max': epochs - 0.5,
        'param_scheduler.1.end': epochs,
    }
    return Job(name, config, folder / name, seed, options)


def table(results: dict[str, Any]) -> str:
    """A Markdown table: mean ± standard deviation over seeds, and the paired difference to all logits."""
    accuracy = {(row['method'], row['k'], row['seed']): row['accuracy'] for row in results['rows']}
    seeds = range(results['seeds'])
    names = ['all', *(f'k = {k}' for k in _TOP[1:])]
    lines = [f'| top-1, % | {" | ".join(names)} |', f'|---|{"--:|" * len(names)}']
    for method in _METHODS:
        cells = []
        for k in _TOP:
            values = [accuracy[method, k, seed] for seed in seeds]
            apart = [accuracy[method, k, seed] - accuracy[method, None, seed] for seed in seeds]
            cells.append(_cell(values) if k is None else f'{_cell(values)} ({statistics.mean(apart):+.1f})')
        lines.append(f'| {method} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _cell(values: list[float]) -> str:
    deviation = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.1f}{deviation}'
