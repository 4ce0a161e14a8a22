"""Costs and savings of the cached teacher: seeding, epochs."""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fnkd_plugin.cache.build import Source, fill, share
from fnkd_plugin.cache.store import Store
from fnkd_plugin.mm.replay.seeded_dataset import checksum, derive_seed, seed_all

from . import _caches
from ._caches import batches_of, build, config_of, epoch_of, images_of, loader
from ._timing import add_preset, device_of, interleaved, median_interval, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_preset(parser, 'on a GPU 224 pixels, batches of 128, --amp, and 8 workers')
    _caches.add_arguments(parser, rounds=9, images=None)
    parser.add_argument('--workers', type=int)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in temporary folders."""
    on_gpu = args.preset == 'gpu'
    args.images = args.images or (2048 if on_gpu else 640)
    args.workers = args.workers or (8 if on_gpu else 1)
    with tempfile.TemporaryDirectory() as folder:
        return dict(rounds=args.rounds, seeding_us=_seeding(), epochs=_epochs(args, Path(folder)))


def table(results: dict[str, Any]) -> str:
    """A Markdown table of medians with 95 % intervals."""
    epochs = results['epochs']
    rows = [
        ('seeding a sample, µs', shown(results['seeding_us']['seed'])),
        ('checksum of 224 x 224 pixels, µs', shown(results['seeding_us']['checksum'])),
        ('cached epoch / plain epoch', shown(epochs['cached_over_plain'], 3)),
        ('live epoch / plain epoch', shown(epochs['live_over_plain'], 3)),
        ("making a view / loading and the teacher's predictions", shown(epochs['build_over_teacher'], 3)),
        *(
            (
                f'{count} student{"s" * (count != "1")}: making a view and an epoch of each / an epoch of each live',
                shown(r, 3),
            )
            for count, r in epochs['students'].items()
        ),
        ('bytes a view of an image', str(epochs['bytes_a_row'])),
    ]
    return '\n'.join(['| | median [95 % interval] |', '|---|--:|', *(f'| {name} | {value} |' for name, value in rows)])


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
    cfg, device, on_gpu = config_of(args, folder), device_of(args), args.preset == 'gpu'
    if on_gpu:
        cfg.train_dataloader.batch_size = 128
        crop = next(t for t in cfg.train_dataloader.dataset.pipeline if t['type'] == 'RandomResizedCrop')
        crop['scale'] = 224
    size = cfg.train_dataloader.batch_size
    source, store = _caches.make_cache(cfg, folder / 'cache', args.workers, device)
    models = _caches.models_of(cfg, folder / 'cache')
    batches = batches_of(args.images, size)
    todo: dict[str, Callable[[], Any]] = {
        name: epoch_of(
            build(model, cfg).to(device), images_of(cfg, name == 'cached'), batches, args.workers, amp=on_gpu
        )
        for name, model in models.items()
    }
    todo['teacher'] = partial(_predict_all, source, batches, args.workers)
    todo['build'] = partial(_build, source, size, args, folder)
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
        config=args.config.name,
        milliseconds_an_image={name: median_interval([t / args.images for t in ts], 3) for name, ts in times.items()},
        cached_over_plain=ratio('cached', 'plain'),
        live_over_plain=ratio('live', 'plain'),
        build_over_teacher=ratio('build', 'teacher'),
        students={str(count): of_students(count) for count in (1, 2, 5)},
        bytes_a_row=store.lookup(np.zeros(1, int), np.zeros(1, int)).itemsize,
    )


def _predict_all(source: Source, batches: list[range], workers: int) -> None:
    for batch in loader(source.dataset, batches, workers):
        data = source.preprocessor(batch, True)
        source.teacher.predict(data['inputs'], data['data_samples'])


def _build(source: Source, size: int, args: argparse.Namespace, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        whole = Store(folder / 'cache')
        store = Store.create(Path(fresh) / 'cache', whole.manifest, whole.origin)
        fill(source, store, share(store), size, args.workers)
