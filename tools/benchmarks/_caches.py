"""Shared by the benchmarks of the cache: config, cache, models, epochs."""

import argparse
import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from torch.utils.data import DataLoader, Dataset

from fnkd_plugin.cache.build import Source, fill, share
from fnkd_plugin.cache.store import Store
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.replay.seeded_dataset import Replay, SampleIndex, seed_samples

from ._pairs import optim_wrapper

_ROOT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser, rounds: int, images: int | None) -> None:
    """Add the options of epochs and images."""
    parser.add_argument('--rounds', type=int, default=rounds, help='epochs of each kind')
    parser.add_argument('--images', type=int, default=images, help='images of an epoch')
    parser.add_argument('--config', type=Path, default=_ROOT / 'configs' / 'cub2010' / 'fnkd_lite0_cub2010.py')


def config_of(args: argparse.Namespace, folder: Path) -> Config:
    """The config, with random weights for both networks, which do not change the time."""
    init_default_scope('mmpretrain')
    cfg = load_config(args.config)
    weights = folder / 'teacher.pth'
    if not weights.exists():
        torch.save(timm.create_model(cfg.model.teacher.model, num_classes=200).state_dict(), weights)
    cfg.model.teacher.checkpoint = str(weights)
    cfg.model.student.checkpoint = None
    cfg.model.head.soft_loss.tau = 5.0
    cfg.train_dataloader.dataset.indices = args.images
    return cfg


def make_cache(cfg: Config, folder: Path, workers: int, device: str = 'cpu') -> tuple[Source, Store]:
    """Cache one view of every image in ``folder``."""
    source = Source(cfg, Replay(0, 1), torch.device(device))
    store = source.open_store(folder)
    fill(source, store, share(store), cfg.train_dataloader.batch_size, workers)
    return source, store


def models_of(cfg: Config, cache: Path) -> dict[str, Any]:
    """Model configs: the plain student, and the student with a live and with a cached teacher."""
    cached = dict(cfg.model, teacher=dict(type='CachedTeacher', path=str(cache)))
    return dict(plain=cfg.model.student, live=cfg.model, cached=cached)


def build(model: Any, cfg: Config) -> Any:
    """Build the model with its data preprocessor."""
    return MODELS.build(copy.deepcopy(dict(model, data_preprocessor=cfg.data_preprocessor)))


def images_of(cfg: Config, stamps: bool) -> Dataset:
    """The training images with seeded augmentations."""
    dataset = DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset))
    seed_samples(dataset, Replay(0, 1).data_seed, stamps)
    return dataset


def epoch_of(
    model: Any, dataset: Dataset, batches: Iterable[range], workers: int, amp: bool = False
) -> Callable[[], None]:
    """A function that trains on these batches, including data loading."""
    optim = optim_wrapper(model, amp)

    def epoch() -> None:
        for batch in loader(dataset, batches, workers):
            model.train_step(batch, optim)

    return epoch


def loader(dataset: Dataset, batches: Iterable[range], workers: int) -> DataLoader:
    """A data loader of these batches, in the first view."""
    indices = [[SampleIndex(i, 0) for i in batch] for batch in batches]
    return DataLoader(dataset, batch_sampler=indices, num_workers=workers, collate_fn=default_collate)


def batches_of(count: int, size: int) -> list[range]:
    """The image indices of each batch."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
