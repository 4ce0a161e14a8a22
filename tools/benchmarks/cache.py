"""What the cached teacher costs and saves: seeding, lookups, memory, epochs."""

import argparse
import copy
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmengine.dataset import default_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from torch.utils.data import DataLoader

from fnkd_plugin.datasets.seeded_dataset import SampleIndex, checksum, data_seed, derive_seed, seed_all, seed_samples
from fnkd_plugin.engine.training import load_config
from fnkd_plugin.knowledge.build import Source, fill, share
from fnkd_plugin.knowledge.replay import Replay
from fnkd_plugin.knowledge.store import BLOCK, Store, rows_of

from ._timing import interleaved, median_interval, shown

_ROOT = Path(__file__).resolve().parents[2]
_CLASSES = 1000
_LOOKUP = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much, and of what."""
    parser.add_argument('--rounds', type=int, default=9, help='epochs of each kind')
    parser.add_argument('--images', type=int, default=640, help='images of an epoch')
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--config', type=Path, default=_ROOT / 'configs' / 'cub2010' / 'fnkd_lite0_cub2010.py')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, in temporary folders."""
    with tempfile.TemporaryDirectory() as folder:
        found = dict(
            rounds=args.rounds,
            classes=_CLASSES,
            seeding_us=_seeding(),
            lookups_per_s=_lookups(Path(folder) / 'lookups'),
            memory_bytes={str(n): _memory_of(Path(folder) / str(n), n) for n in (10_000, 10_000_000)},
            epochs=_epochs(args, Path(folder)),
        )
    return found


def table(results: dict[str, Any]) -> str:
    """A Markdown table of medians with 95 % intervals."""
    epochs = results['epochs']
    small, large = (results['memory_bytes'][n] / 1e6 for n in ('10000', '10000000'))
    rows = [
        ('seeding a sample, µs', shown(results['seeding_us']['seed'])),
        ('checksum of 224 x 224 pixels, µs', shown(results['seeding_us']['checksum'])),
        (f'lookups of {_LOOKUP} rows of {results["classes"]} classes, million rows/s', shown(results['lookups_per_s'])),
        ('memory for 10 thousand and 10 million rows, MB', f'{small:.2f}, {large:.2f}'),
        ('cached epoch / plain epoch', shown(epochs['cached_over_plain'], 3)),
        ('live epoch / plain epoch', shown(epochs['live_over_plain'], 3)),
        ('making a view / loading and asking the teacher', shown(epochs['build_over_teacher'], 3)),
        (
            'making a view and an epoch of five students on it / of five with a live teacher',
            shown(epochs['five_cached_over_live'], 3),
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


def _empty_store(folder: Path, samples: int) -> Store:
    teacher, data = dict(num_classes=_CLASSES), dict(samples=samples)
    manifest = dict(seed=0, views=1, dtype='float16', top_k=None, data=data, teacher=teacher)
    return Store.create(folder, manifest, None)


def _lookups(folder: Path, samples: int = 10 * BLOCK, rounds: int = 200) -> list[float]:
    store, random = _empty_store(folder, samples), np.random.default_rng(0)
    for view, start, end in list(store.pending()):
        logits = torch.randn(end - start, _CLASSES)
        store.write(view, start, rows_of(store.row_type, np.zeros(end - start), None, logits))
    view = np.zeros(_LOOKUP, int)
    store.lookup(np.zeros(samples, int), np.arange(samples))  # warm
    times = interleaved({'lookup': lambda: store.lookup(view, random.integers(0, samples, _LOOKUP))}, rounds, 'lookups')
    return median_interval([_LOOKUP / ms / 1000 for ms in times['lookup']])


def _memory_of(folder: Path, samples: int) -> int:
    """Bytes of memory, mapped pages apart, that reading a store takes; in a process of its own."""
    _empty_store(folder, samples)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_anonymous_growth, (folder,))


def _anonymous_growth(folder: Path) -> int:
    before = _anonymous()
    store, random = Store(folder), np.random.default_rng(0)
    for _ in range(100):
        store.lookup(np.zeros(_LOOKUP, int), random.integers(0, store.samples, _LOOKUP))
    return _anonymous() - before


def _anonymous() -> int:
    lines = Path(f'/proc/{os.getpid()}/status').read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith('RssAnon:'))


def _epochs(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Whole passes over the images, loader included, of a student plain, cached and live; and of making a view."""
    init_default_scope('mmpretrain')
    cfg = load_config(args.config)
    torch.save(timm.create_model(cfg.model.teacher.model, num_classes=200).state_dict(), folder / 'teacher.pth')
    cfg.model.teacher.checkpoint = str(folder / 'teacher.pth')
    cfg.model.student.checkpoint = None
    cfg.model.head.soft_loss.tau = 5.0
    cfg.train_dataloader.dataset.indices = args.images
    cfg.train_dataloader.num_workers = args.workers
    size, source = cfg.train_dataloader.batch_size, Source(cfg, Replay(0, 1), torch.device('cpu'))
    store = source.open_store(folder / 'cache')
    fill(source, store, share(store), size, args.workers)
    distilled = dict(cfg.model, teacher=dict(type='CachedTeacher', path=str(folder / 'cache')))
    models = dict(plain=cfg.model.student, cached=distilled, live=cfg.model)
    todo = {name: _epoch(model, cfg, name == 'cached', args) for name, model in models.items()}
    todo['teacher'] = partial(_ask_all, source, size, args)
    todo['build'] = partial(_build, source, size, args, folder)
    times = interleaved(todo, args.rounds, 'epochs')

    def ratio(a: str, b: str) -> list[float]:
        return median_interval([x / y for x, y in zip(times[a], times[b], strict=True)], 4)

    # Each of five students trains as long, so a round's epochs stand for theirs.
    times['five_cached'] = [b + 5 * c for b, c in zip(times['build'], times['cached'], strict=True)]
    times['five_live'] = [5 * live for live in times['live']]

    return dict(
        images=args.images,
        workers=args.workers,
        config=args.config.name,
        milliseconds_an_image={name: median_interval([t / args.images for t in ts], 3) for name, ts in times.items()},
        cached_over_plain=ratio('cached', 'plain'),
        live_over_plain=ratio('live', 'plain'),
        build_over_teacher=ratio('build', 'teacher'),
        five_cached_over_live=ratio('five_cached', 'five_live'),
        bytes_a_row=store.lookup(np.zeros(1, int), np.zeros(1, int)).itemsize,
    )


def _epoch(model: Any, cfg: Any, stamps: bool, args: argparse.Namespace) -> Callable[[], None]:
    built = MODELS.build(copy.deepcopy(dict(model, data_preprocessor=cfg.data_preprocessor)))
    optim = OptimWrapper(torch.optim.SGD(built.parameters(), 0.01, momentum=0.9))
    dataset = DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset))
    seed_samples(dataset, data_seed(0), stamps)

    def epoch() -> None:
        for batch in _loader(dataset, cfg.train_dataloader.batch_size, args):
            built.train_step(batch, optim)

    return epoch


def _loader(dataset: Any, size: int, args: argparse.Namespace) -> DataLoader:
    batches = [[SampleIndex(i, 0) for i in chunk] for chunk in _chunks(len(dataset), size)]
    return DataLoader(dataset, batch_sampler=batches, num_workers=args.workers, collate_fn=default_collate)


def _chunks(count: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, count)) for first in range(0, count, size))


def _ask_all(source: Source, size: int, args: argparse.Namespace) -> None:
    for batch in _loader(source.dataset, size, args):
        data = source.preprocessor(batch, True)
        source.teacher.predict(data['inputs'], data['data_samples'])


def _build(source: Source, size: int, args: argparse.Namespace, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        store = Store.create(fresh, Store(folder / 'cache').manifest, None)
        fill(source, store, share(store), size, args.workers)
