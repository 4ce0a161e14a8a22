"""Costs and savings of the cached teacher: seeding, epochs, and a store's growth with images, classes and views.

Epochs train EfficientNet-Lite2 → Lite0 on birds, both with random weights, which do not change the time. Stores hold
random logits.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from experiments.readme import markdown
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmpretrain.registry import DATASETS, MODELS
from torch.utils.data import DataLoader, Dataset

from fnkd_plugin.cache.build import Source, fill, share
from fnkd_plugin.cache.fingerprint import describe_data
from fnkd_plugin.cache.store import Store, rows_of
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.replay.seeded_dataset import Replay, SampleIndex, checksum, derive_seed, seed_all, seed_samples

from ._memory import status
from ._pairs import optim_wrapper
from ._timing import add_preset, device_of, interleaved, median_interval, milliseconds, shown

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'cub2010' / 'fnkd_lite0_cub2010.py'
# Images, classes, views: only one of them grows at a time.
STORES = (
    *((images, 100, 1) for images in (10_000, 100_000, 1_000_000)),
    *((10_000, classes, 1) for classes in (10, 1_000, 21_841)),
    *((10_000, 100, views) for views in (4, 16)),
)
CHECKED = (1_000, 10_000, 100_000)
LOOKUP = 256
"""Rows of one lookup."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_preset(parser, 'on a GPU 224 pixels, batches of 128, --amp, and 8 workers')
    parser.add_argument('--rounds', type=int, default=9, help='epochs of each kind')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in temporary folders."""
    args.images, args.workers = (2048, 8) if args.on_gpu else (640, 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        return dict(
            rounds=args.rounds,
            seeding_us=_seeding(),
            epochs=_epochs(args, folder),
            stores=[_store(folder / f'store{i}', *sizes) for i, sizes in enumerate(STORES)],
            checks=[_check(folder, images) for images in CHECKED],
        )


def table(results: dict[str, Any]) -> str:
    """Markdown tables, with medians and 95 % intervals."""
    epochs, seeding = results['epochs'], results['seeding_us']
    costs = {
        'seeding a sample, µs': shown(seeding['seed']),
        'checksum of 224 x 224 pixels, µs': shown(seeding['checksum']),
        'cached epoch / plain epoch': shown(epochs['cached_over_plain'], 3),
        'live epoch / plain epoch': shown(epochs['live_over_plain'], 3),
        "making a view / loading and the teacher's predictions": shown(epochs['build_over_teacher'], 3),
    }
    for count, ratio in epochs['students'].items():
        students = f'{count} student{"s" * (count != "1")}'
        costs[f'{students}: making a view and an epoch of each / an epoch of each live'] = shown(ratio, 3)
    costs['bytes per view and image'] = epochs['bytes_a_row']
    heads = ['images', 'classes', 'views', 'on disk, MB', 'written, rows/s', 'opened, ms']
    stores = []
    for row in results['stores']:
        sizes = [f'{row[name]:,}' for name in ('images', 'classes', 'views')]
        written = [f'{row["bytes"] / 1e6:.1f}', f'{row["written_rows_per_s"]:,}']
        read = [f'{row["open_ms"]:.1f}', shown(row['lookups_per_us'], 2), f'{row["memory_bytes"] / 1e6:.1f}']
        stores.append([*sizes, *written, *read])
    checks = [[f'{row["images"]:,}', f'{row["seconds"]:.2f}'] for row in results['checks']]
    return '\n\n'.join(
        [
            markdown(['', 'median [95 % interval]'], costs.items()),
            markdown([*heads, 'looked up, million rows/s', 'memory, MB'], stores, 'r' * 8),
            markdown(['images', 'comparing the data at start, s'], checks, 'rr'),
        ]
    )


def _seeding(rounds: int = 50, calls: int = 50) -> dict[str, list[float]]:
    image = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
    todo: dict[str, Callable[[], Any]] = {
        'seed': lambda: [seed_all(derive_seed(2**62, 3, 0, i)) for i in range(calls)],
        'checksum': lambda: [checksum(image) for _ in range(calls)],
    }
    times = interleaved(todo, rounds, 'seeding')
    return {name: median_interval([1000 * ms / calls for ms in values]) for name, values in times.items()}


def _epochs(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times of an epoch, including data loading, of the plain, cached and live student, and of caching a view."""
    cfg, device = _config(args, folder), device_of(args)
    source = Source(cfg, Replay(0, 1), torch.device(device))
    batches = _batches(args.images, cfg.train_dataloader.batch_size)
    store = _cached(source, source.open_store(folder / 'cache'), args.workers, cfg)
    models = dict(plain=cfg.model.student, live=cfg.model)
    models['cached'] = dict(cfg.model, teacher=dict(type='CachedTeacher', path=str(folder / 'cache')))
    todo: dict[str, Callable[[], Any]] = {
        name: partial(_train, *_training(cfg, model, name == 'cached', args), batches, args.workers)
        for name, model in models.items()
    }
    todo['teacher'] = partial(_predict, source, batches, args.workers)
    todo['build'] = partial(_cache_again, source, folder, args.workers, cfg)
    times = interleaved(todo, args.rounds, 'epochs')

    def ratio(a: str, b: str) -> list[float]:
        return median_interval([x / y for x, y in zip(times[a], times[b], strict=True)], 4)

    def of_students(count: int) -> list[float]:
        """The time of caching a view and training each student for an epoch on it, relative to a live teacher."""
        rounds = zip(times['build'], times['cached'], times['live'], strict=True)
        return median_interval([(made + count * cached) / (count * live) for made, cached, live in rounds], 4)

    return dict(
        images=args.images,
        workers=args.workers,
        device=device,
        config=CONFIG.name,
        milliseconds_an_image={name: median_interval([t / args.images for t in ts], 3) for name, ts in times.items()},
        cached_over_plain=ratio('cached', 'plain'),
        live_over_plain=ratio('live', 'plain'),
        build_over_teacher=ratio('build', 'teacher'),
        students={str(count): of_students(count) for count in (1, 2, 5)},
        bytes_a_row=store.lookup(np.zeros(1, int), np.zeros(1, int)).itemsize,
    )


def _config(args: argparse.Namespace, folder: Path) -> Config:
    cfg = load_config(CONFIG)
    weights = folder / 'teacher.pth'
    torch.save(timm.create_model(cfg.model.teacher.model, num_classes=200).state_dict(), weights)
    cfg.model.teacher.checkpoint, cfg.model.student.checkpoint = str(weights), None
    cfg.model.head.soft_loss.tau = 5.0
    data = cfg.train_dataloader.dataset
    data.indices = args.images
    if args.on_gpu:
        cfg.train_dataloader.batch_size = 128
        next(t for t in data.pipeline if t['type'] == 'RandomResizedCrop')['scale'] = 224
    return cfg


def _training(cfg: Config, model: Any, stamps: bool, args: argparse.Namespace) -> tuple[Any, Any, Dataset]:
    """Model, optimizer wrapper and seeded training images."""
    built = MODELS.build(copy.deepcopy(dict(model, data_preprocessor=cfg.data_preprocessor))).to(device_of(args))
    dataset = DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset))
    seed_samples(dataset, Replay(0, 1).data_seed, stamps)
    return built, optim_wrapper(built, args.on_gpu), dataset


def _train(model: Any, optim: Any, dataset: Dataset, batches: list[range], workers: int) -> None:
    for batch in _loader(dataset, batches, workers):
        model.train_step(batch, optim)


def _predict(source: Source, batches: list[range], workers: int) -> None:
    for batch in _loader(source.dataset, batches, workers):
        data = source.preprocessor(batch, True)
        source.teacher.predict(data['inputs'], data['data_samples'])


def _cached(source: Source, store: Store, workers: int, cfg: Config) -> Store:
    fill(source, store, share(store), cfg.train_dataloader.batch_size, workers)
    return store


def _cache_again(source: Source, folder: Path, workers: int, cfg: Config) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        whole = Store(folder / 'cache')
        _cached(source, Store.create(Path(fresh) / 'cache', whole.manifest, whole.origin), workers, cfg)


def _loader(dataset: Dataset, batches: Iterable[range], workers: int) -> DataLoader:
    """A data loader of these batches, in the first view."""
    indices = [[SampleIndex(i, 0) for i in batch] for batch in batches]
    return DataLoader(dataset, batch_sampler=indices, num_workers=workers, collate_fn=default_collate)


def _batches(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _store(folder: Path, images: int, classes: int, views: int) -> dict[str, Any]:
    """Time writing all rows, opening the store and random lookups."""
    store = _empty_store(folder, images, classes, views)
    start = time.perf_counter()
    logits = torch.randn(store.block, classes)
    for view, first, end in list(store.pending()):
        store.write(view, first, rows_of(store.row_type, np.zeros(end - first), None, logits[: end - first]))
    written = images * views / (time.perf_counter() - start)
    before, opening, random = status('RssAnon'), time.perf_counter(), np.random.default_rng(0)
    opened = Store(folder)
    opening = time.perf_counter() - opening
    for view in range(views):
        for rows in _batches(images, LOOKUP):
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


def _check(folder: Path, images: int) -> dict[str, Any]:
    """Time describing a data set for the comparison with a cache."""
    (folder / 'labels.txt').write_text(''.join(f'folder/{i:08}.jpg {i % 100}\n' for i in range(images)))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    found = DATASETS.build(
        dict(type='CustomDataset', ann_file='labels.txt', data_root=str(folder), data_prefix='', pipeline=pipeline)
    )
    return dict(images=images, seconds=round(milliseconds(lambda: describe_data(found)) / 1000, 3))
