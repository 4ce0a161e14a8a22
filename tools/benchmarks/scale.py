"""How the costs of cache and epochs grow with images, classes, views and processes.

Caches hold random logits. Epochs train a config; each process has one thread and loads its images itself.
"""

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import MMDistributedDataParallel
from mmpretrain.registry import DATASETS
from torch import distributed, multiprocessing

from fnkd_plugin.cache.build import Source
from fnkd_plugin.cache.fingerprint import describe_data
from fnkd_plugin.cache.store import Store, rows_of

from . import _caches
from ._caches import batches_of, build, config_of, epoch_of, images_of, loader
from ._memory import status
from ._timing import median_interval, milliseconds, shown

# Images, classes, views: only one of them grows at a time.
STORES = (
    *((images, 100, 1) for images in (10_000, 100_000, 1_000_000)),
    *((10_000, classes, 1) for classes in (10, 1_000, 21_841)),
    *((10_000, 100, views) for views in (4, 16)),
)
CHECKED = (1_000, 10_000, 100_000)
KINDS = ('plain', 'live', 'cached', 'build')
LOOKUP = 256
"""Rows of one lookup."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    _caches.add_arguments(parser, rounds=5, images=256)
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in temporary folders."""
    with tempfile.TemporaryDirectory() as folder:
        epochs = [_epochs(args, Path(folder), world) for world in args.processes]
        stores = [_store(Path(folder) / f'store{i}', *sizes) for i, sizes in enumerate(STORES)]
        checks = [_check(Path(folder), images) for images in CHECKED]
    return {'rounds': args.rounds, 'images': args.images, 'epochs': epochs, 'stores': stores, 'checks': checks}


def _store(folder: Path, images: int, classes: int, views: int) -> dict[str, Any]:
    """Time writing all rows, opening the store and random lookups."""
    store = _empty_store(folder, images, classes, views)
    start = time.perf_counter()
    _write_blocks(store, list(store.pending()))
    written = images * views / (time.perf_counter() - start)
    before, opening, random = status('RssAnon'), time.perf_counter(), np.random.default_rng(0)
    opened = Store(folder)
    opening = time.perf_counter() - opening
    for view in range(views):
        for rows in batches_of(images, LOOKUP):
            opened.lookup(np.full(len(rows), view), np.asarray(rows))  # warm
    rates = []
    for _ in range(200):
        # All rows of a batch are of one view.
        batch = np.full(LOOKUP, random.integers(0, views)), random.integers(0, images, LOOKUP)
        rates.append(LOOKUP / milliseconds(lambda batch=batch: opened.lookup(*batch)) / 1000)
    return dict(
        images=images,
        classes=classes,
        views=views,
        bytes=sum(512 * path.stat().st_blocks for path in folder.iterdir()),
        written_rows_per_s=round(written),
        open_ms=round(1000 * opening, 2),
        lookups_per_us=median_interval(rates, 3),
        memory_bytes=status('RssAnon') - before,
    )


def _empty_store(folder: Path, samples: int, classes: int, views: int) -> Store:
    """A new store that needs no teacher."""
    teacher = dict(
        name='', config={}, weights='', num_classes=classes, feature_norm=False, classes=None, class_ids=None
    )
    data = dict(dataset='', samples=samples, annotations='', classes=[], pipeline=[])
    of = dict(seed=0, views=views, dtype='float16', top_k=None, image=[3, 8, 8], mixing=None, software={})
    return Store.create(folder, dict(of, data=data, teacher=teacher), None)


def _write_blocks(store: Store, blocks: Iterable[tuple[int, int, int]]) -> None:
    """Write rows of random logits."""
    logits = torch.randn(store.block, store.manifest['teacher']['num_classes'])
    for view, first, end in blocks:
        store.write(view, first, rows_of(store.row_type, np.zeros(end - first), None, logits[: end - first]))


def _check(folder: Path, images: int) -> dict[str, Any]:
    """Time describing a data set for the comparison with a cache."""
    (folder / 'labels.txt').write_text(''.join(f'folder/{i:08}.jpg {i % 100}\n' for i in range(images)))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    found = DATASETS.build(
        dict(type='CustomDataset', ann_file='labels.txt', data_root=str(folder), data_prefix='', pipeline=pipeline)
    )
    return dict(images=images, seconds=round(milliseconds(lambda: describe_data(found)) / 1000, 3))


def _epochs(args: argparse.Namespace, folder: Path, world: int) -> dict[str, Any]:
    """Milliseconds per image of all processes together; the kinds of epochs take turns."""
    folder = folder / f'processes{world}'
    folder.mkdir()
    _caches.config_of(args, folder)  # writes the weights that all processes read
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    options = argparse.Namespace(images=args.images, rounds=args.rounds, config=args.config)  # can be pickled
    multiprocessing.spawn(_process, (world, port, options, folder), nprocs=world)
    found = torch.load(folder / 'times.pth', weights_only=True)
    return {'processes': world} | {kind: median_interval([t / args.images for t in found[kind]], 3) for kind in KINDS}


def _process(rank: int, world: int, port: int, args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    distributed.init_process_group('gloo', rank=rank, world_size=world)
    cfg = config_of(args, folder)
    whole = batches_of(args.images, cfg.train_dataloader.batch_size)
    batches = whole[: len(whole) // world * world][rank::world]  # an equal number for each process
    source, _ = _caches.make_cache(cfg, folder / 'cache', workers=0)
    todo: dict[str, Callable[[], None]] = {'build': lambda: _predict_all(source, batches)}
    for kind, model in _caches.models_of(cfg, folder / 'cache').items():
        wrapped = MMDistributedDataParallel(build(model, cfg))
        todo[kind] = epoch_of(wrapped, images_of(cfg, kind == 'cached'), batches, 0)
    times: dict[str, list[float]] = {kind: [] for kind in todo}
    for _ in range(args.rounds + 1):
        for kind, call in todo.items():
            times[kind].append(milliseconds(lambda call=call: _together(call)))
    if rank == 0:
        torch.save({kind: taken[1:] for kind, taken in times.items()}, folder / 'times.pth')  # the first warms up
    distributed.destroy_process_group()


def _together(call: Callable[[], None]) -> None:
    distributed.barrier()
    call()
    distributed.barrier()


def _predict_all(source: Source, batches: list[range]) -> None:
    for _ in source.rows(loader(source.dataset, batches, 0).batch_sampler):
        pass


def table(results: dict[str, Any]) -> str:
    """Three Markdown tables: stores, comparing the data, epochs."""
    stores = [
        '| images | classes | views | on disk, MB | written, rows/s | opened, ms | looked up, million rows/s '
        '| memory, MB |',
        '|--:|--:|--:|--:|--:|--:|--:|--:|',
    ]
    for row in results['stores']:
        stores.append(
            f'| {row["images"]:,} | {row["classes"]:,} | {row["views"]} | {row["bytes"] / 1e6:,.1f} '
            f'| {row["written_rows_per_s"]:,} | {row["open_ms"]:.1f} | {shown(row["lookups_per_us"], 2)} '
            f'| {row["memory_bytes"] / 1e6:.1f} |'
        )
    checks = ['| images | comparing the data at start, s |', '|--:|--:|']
    checks += [f'| {row["images"]:,} | {row["seconds"]:.2f} |' for row in results['checks']]
    kinds = {'plain': 'plain', 'cached': 'cached', 'live': 'live teacher', 'build': 'making the cache'}
    epochs = [
        f'| processes | {" | ".join(f"{title}, ms an image" for title in kinds.values())} |',
        f'|--:|{"--:|" * len(kinds)}',
    ]
    for row in results['epochs']:
        epochs.append(f'| {row["processes"]} | {" | ".join(shown(row[kind], 2) for kind in kinds)} |')
    return '\n'.join([*stores, '', *checks, '', *epochs])
