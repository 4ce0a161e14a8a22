"""Builds a cache: the teacher of a distilled config predicts every view of every training image once."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import barrier, get_dist_info
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import nn
from torch.utils.data import DataLoader

from fnkd_plugin.cache.fingerprint import describe_data, describe_software, describe_weights, differences, plain
from fnkd_plugin.cache.rows import predict_rows, samples_of
from fnkd_plugin.cache.store import Store, row_type
from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.mm.config import is_distilled, plain_model, without_pretrained
from fnkd_plugin.mm.replay.batch_augments import describe_mixing, replay_mixing
from fnkd_plugin.mm.replay.description import images_key, warn_if_trained_on
from fnkd_plugin.mm.replay.fixed_batches import check_loader
from fnkd_plugin.mm.replay.seeded_dataset import Replay, SampleIndex, seed_samples
from fnkd_plugin.teachers.execution import AUTO
from fnkd_plugin.teachers.pixels import format_of_preprocessor
from fnkd_plugin.teachers.teacher import ModelTeacher

Block = tuple[int, int, int]
"""A view, the first row of a block in it, and the row after its last."""


class Source:
    """The live teacher and the training images of a distilled config.

    Args:
        cfg: The config; ``model.teacher`` is a single live one. All its classes are stored, without its class map.
        replay: The views to store. If the student's data preprocessor mixes the images of a batch, training batches are
            fixed, and predictions are those of the mixed images.
        device: Device of the teacher.
        dtype: Type of the stored logits.
        top_k: Number of logits to store per image, the largest, with moments of the others
            (:mod:`fnkd_plugin.losses.top_k`); None for all.

    Raises:
        SetupError: If the teacher is not a single live one, ``top_k`` is not below its number of classes, or the mixing
            of images is not repeatable.
    """

    def __init__(
        self, cfg: Config, replay: Replay, device: torch.device, dtype: str = 'float16', top_k: int | None = None
    ) -> None:
        self._dtype, self._top_k = dtype, top_k
        config = _teacher_config(cfg)
        self.teacher_config = plain(config)
        student = MODELS.build(without_pretrained(plain_model(cfg)))
        self.preprocessor: nn.Module = student.data_preprocessor.to(device)
        self.teacher = MODELS.build(config)
        if not isinstance(self.teacher, ModelTeacher):
            raise SetupError(
                f'Cache: {type(self.teacher).__name__} cannot be cached; give a single live teacher. Make a cache for '
                'each of several, and train with an EnsembleTeacher of CachedTeachers.'
            )
        if top_k is not None and not 0 < top_k < self.teacher.num_classes:
            raise SetupError(
                f'Cache: top_k={top_k} is not in 1 to {self.teacher.num_classes - 1}: '
                f'{self.teacher.name} has {self.teacher.num_classes} classes.'
            )
        self.row_type = row_type(self.teacher.num_classes, dtype, top_k)
        stated = cfg.model.get('pixels') or {}
        self.teacher.prepare(format_of_preprocessor(self.preprocessor).restated('Distiller: pixels', **stated))
        loader = Runner.build_dataloader(cfg.train_dataloader)
        self.dataset, seed = loader.dataset, replay.data_seed
        warn_if_trained_on(self.teacher_config, images_key(self.dataset, seed))
        self._mixing = describe_mixing(self.preprocessor, seed, loader.batch_size)
        if self._mixing is not None:
            check_loader(loader)
            replay = replay._replace(batch_size=loader.batch_size)
        self.replay = replay
        seed_samples(self.dataset, seed, stamps=True)
        replay_mixing(self.preprocessor, seed)
        shape = self.dataset[SampleIndex(0, 0)]['inputs'].shape
        self._collate = partial(_collate_one_size, loader.collate_fn, shape)

    @property
    def bytes_needed(self) -> int:
        """The size of the whole cache on disk."""
        return len(self.dataset) * self.replay.views * self.row_type.itemsize

    def open_store(self, folder: Path) -> Store:
        """The store in ``folder``, created by the first process if it does not exist.

        Raises:
            SetupError: If the folder holds another cache, or other files.
        """
        _, images = next(self.rows([[SampleIndex(0, 0)]]))
        manifest, origin = self._describe(list(images.shape[1:])), self.teacher.predict(images).origin
        if get_dist_info()[0] == 0 and not Store.exists(folder):
            Store.create(folder, manifest, None if origin is None else origin.float().cpu().numpy())
        barrier()
        store = Store(folder)
        different = differences(store.manifest, {**store.manifest, **manifest})
        if different:
            raise SetupError(
                f'{folder} is another cache: {first_few(different)}; continue with the arguments that it was made '
                'with, or give another folder.'
            )
        return store

    def batches(self, blocks: Iterable[Block], size: int) -> Iterator[list[SampleIndex]]:
        """The images of these blocks in batches of ``size``, which for mixed images is that of the mixed batches."""
        for view, start, end in blocks:
            for first in range(start, end, size):
                yield samples_of(self.replay, len(self.dataset), view, first, min(first + size, end))

    def rows(self, batches: Iterable[list[SampleIndex]], num_workers: int = 0) -> Iterator[tuple[Any, torch.Tensor]]:
        """The rows and images of these batches, see :func:`~fnkd_plugin.cache.rows.predict_rows`."""
        loader = DataLoader(self.dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=self._collate)
        for batch in loader:
            yield predict_rows(self.teacher, self.preprocessor, batch, self.row_type)

    def _describe(self, image: list[int]) -> dict[str, Any]:
        teacher = self.teacher
        classes = teacher.class_map.own
        return dict(
            seed=self.replay.seed,
            views=self.replay.views,
            dtype=self._dtype,
            top_k=self._top_k,
            image=image,
            data=describe_data(self.dataset),
            mixing=self._mixing,
            teacher=dict(
                name=teacher.name,
                # Without the path of the weights, which are compared by their hash.
                config={key: value for key, value in self.teacher_config.items() if key != 'checkpoint'},
                weights=describe_weights(teacher.model),
                num_classes=teacher.num_classes,
                feature_norm=teacher.has_feature_norm,
                classes=None if classes is None else list(classes.names),
                class_ids=None if classes is None or classes.ids is None else list(classes.ids),
            ),
            software=describe_software(),
        )


def share(store: Store) -> list[Block]:
    """The blocks that this process has to fill."""
    todo = list(store.pending())
    barrier()  # all processes have read the pending blocks before the first is written
    rank, world = get_dist_info()
    return todo[rank::world]


def fill(
    source: Source,
    store: Store,
    blocks: list[Block],
    batch_size: int,
    num_workers: int = 0,
    advance: Callable[[int], Any] = lambda count: None,
) -> None:
    """Predict and store blocks of rows.

    Args:
        source: The teacher and the images.
        store: A store of that source.
        blocks: The blocks to fill.
        batch_size: Images per batch of the teacher; it changes logits by rounding. Ignored for mixed images, which come
            in the batches in which they are mixed.
        num_workers: Number of processes that load images.
        advance: Called with the number of rows of each batch.

    Raises:
        SetupError: If images differ in size, or a logit does not fit.
        OSError: If the disk is full.
    """
    batch_size = source.replay.batch_size or batch_size
    predicted = source.rows(source.batches(blocks, batch_size), num_workers)
    for view, start, end in blocks:
        rows: list[np.ndarray] = []
        while sum(map(len, rows)) < end - start:
            rows.append(next(predicted)[0])
            advance(len(rows[-1]))
        store.write(view, start, np.concatenate(rows))
    barrier()


def _collate_one_size(collate: Callable[[Any], Any], shape: torch.Size, samples: list[Any]) -> Any:
    """A collated batch of images of one shape; others would be padded differently in each batch."""
    for sample in samples:
        found, stamp = sample['inputs'].shape, sample['data_samples'].stamp
        if found != shape:
            raise SetupError(
                f'Cache: image {stamp.sample} of view {stamp.view} is {list(found)}, others are {list(shape)}; end the '
                'pipeline with images of one size (Resize, a crop).'
            )
    return collate(samples)


def _teacher_config(cfg: Config) -> dict[str, Any]:
    if not is_distilled(cfg):
        raise SetupError('Cache: the config has no teacher; its model is not a Distiller.')
    # items() imports the classes in pure-Python configs.
    teacher = dict(cfg.model.teacher.items())
    if teacher.get('execution') == AUTO:
        raise SetupError(
            "Cache: the teacher has execution='auto', which may choose differently when the tool is run again; give "
            'execution=dict(channels_last=True) or the like, or leave it out.'
        )
    teacher.pop('class_map', None)
    return teacher
