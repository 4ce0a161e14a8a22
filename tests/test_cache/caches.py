"""Caches of tiny teachers on random images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from fnkd_plugin.cache.build import Source, fill, share
from fnkd_plugin.cache.store import Store
from fnkd_plugin.mm.replay.seeded_dataset import Replay
from tests.helpers import config, distilled, resnet
from tests.test_mm.test_hooks.runs import loader


def make_cache(
    folder: Path,
    teacher: dict,
    views: int = 2,
    dtype: str = 'float16',
    seed: int = 0,
    top_k: int | None = None,
    student: Any = None,
    device: str = 'cpu',
    **options: Any,
) -> str:
    """The cache of a teacher on the training images of a run with ``options``; its folder."""
    cfg = Config(
        dict(config(distilled(student or resnet(), teacher), folder, **{'train_dataloader': loader(), **options}))
    )
    source = Source(cfg, Replay(seed, views), torch.device(device), dtype, top_k)
    store = source.open_store(folder)
    fill(source, store, share(store), cfg.train_dataloader.batch_size)
    return str(folder)


def cached(folder: str, **options: Any) -> dict:
    """The config of a ``CachedTeacher``."""
    return dict(type='CachedTeacher', path=folder, **options)


def spoil(folder: Path, view: int) -> None:
    """Other logits of a whole view, with checksums that fit."""
    store = Store(folder)
    places = np.arange(store.samples)
    rows = store.lookup(np.full(len(places), view), places)
    rows['logits'] += 0.25
    for start in range(0, store.samples, store.block):
        store.write(view, start, rows[start : start + store.block])


def with_manifest(cache: str, folder: Path, **entries: Any) -> str:
    """A copy of a cache with other entries in its manifest, its checksums made to fit."""
    old = Store(cache)
    new = Store.create(folder, {**old.manifest, **entries}, old.origin)
    for view, start, end in list(new.pending()):
        new.write(view, start, old.lookup(np.full(end - start, view), np.arange(start, end)))
    return str(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Each file of a store."""
    assert Store.exists(folder)
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
