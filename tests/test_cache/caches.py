"""Caches of tiny teachers on random images."""

from pathlib import Path
from typing import Any

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
    **options: Any,
) -> str:
    """The cache of a teacher on the training images of a run with ``options``; its folder."""
    cfg = Config(
        dict(config(distilled(student or resnet(), teacher), folder, **{'train_dataloader': loader(), **options}))
    )
    source = Source(cfg, Replay(seed, views), torch.device('cpu'), dtype, top_k)
    store = source.open_store(folder)
    fill(source, store, share(store), cfg.train_dataloader.batch_size)
    return str(folder)


def cached(folder: str, **options: Any) -> dict:
    """The config of a ``CachedTeacher``."""
    return dict(type='CachedTeacher', path=folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Each file of a store."""
    assert Store.exists(folder)
    return {file.name: file.read_bytes() for file in sorted(Path(folder).glob('*.*'))}
