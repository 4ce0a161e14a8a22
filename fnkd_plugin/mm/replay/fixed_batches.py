"""Batches that are the same in every run, for augmentations that mix the images of a batch."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dataset import DefaultSampler
from torch.utils.data import BatchSampler, DataLoader

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay.seeded_dataset import SampleIndex, base_of, derive_seed, named_after, new_instance, rebase


def order_of(seed: int, view: int, count: int) -> np.ndarray:
    """The permutation in which a view draws its samples; batch b starts at position ``b * batch_size``.

    Args:
        seed: 64 bits, see :attr:`~fnkd_plugin.mm.replay.seeded_dataset.Replay.data_seed`.
        view: Number of the view.
        count: Number of samples.
    """
    return np.random.Generator(np.random.PCG64(derive_seed(seed, view))).permutation(count)


@functools.cache
def _fixed_sampler(base: type) -> type:
    class Fixed(base):
        def _batches(self) -> Iterator[int]:
            count, world, size = len(self.dataset), self.world_size, self._fnkd_size
            steps, batches = steps_of(count, world, size, self._fnkd_drop_last)
            # The next pass through the views begins with the batches that drop_last left out. An incomplete batch is
            # the last of its process, as the loader expects.
            first = self.epoch // self._fnkd_views * steps * world if self._fnkd_drop_last else 0
            for i in range(steps):
                yield (first + i * world + self.rank) % batches

        def _bounds(self, batch: int) -> tuple[int, int]:
            return batch * self._fnkd_size, min((batch + 1) * self._fnkd_size, len(self.dataset))

        def __iter__(self) -> Iterator[SampleIndex]:
            view = self.epoch % self._fnkd_views
            order = order_of(self._fnkd_seed, view, len(self.dataset))
            for batch in self._batches():
                start, end = self._bounds(batch)
                for index in order[start:end].tolist():
                    yield SampleIndex(index, view, batch=batch)

        def __len__(self) -> int:
            return sum(end - start for start, end in map(self._bounds, self._batches()))

        def __reduce_ex__(self, protocol: Any) -> Any:
            return new_instance, (_fixed_sampler, base), self.__dict__

    return named_after(base, Fixed)


def steps_of(count: int, world: int, size: int, drop_last: bool) -> tuple[int, int]:
    """Batches of ``size`` per epoch for each of ``world`` processes, and batches in all.

    The first is the loader's own number, on which MMEngine bases its schedules.
    """
    share = math.ceil(count / world)
    return (share // size, count // size) if drop_last else (math.ceil(share / size), math.ceil(count / size))


def check_loader(loader: DataLoader) -> None:
    """Check that the batches of a loader can be fixed.

    Raises:
        SetupError: If it does not use a shuffling ``DefaultSampler``.
    """
    batch_sampler: Any = loader.batch_sampler
    composed = type(batch_sampler) is not BatchSampler
    sampler = batch_sampler if composed else batch_sampler.sampler
    if composed or base_of(sampler) is not DefaultSampler:
        raise SetupError(
            f'{base_of(sampler).__name__} makes batches of its own, but a cache of mixed images has predictions of '
            'fixed batches: train with DefaultSampler, without Mixup and CutMix, or with a live teacher.'
        )
    if not sampler.shuffle:
        raise SetupError(
            'DefaultSampler(shuffle=False): with replayed mixed images each view is shuffled by its own seed; set '
            'train_dataloader.sampler.shuffle=True.'
        )


def fix_batches(loader: DataLoader, seed: int, views: int, batch_size: int) -> None:
    """Make a loader's sampler draw the batches of :func:`order_of`, in place.

    Epoch e draws those of view ``e % views``. Each of n processes takes every n-th batch, so that the batches do not
    depend on n. A second call changes the arguments.

    Args:
        loader: A loader with a shuffling ``DefaultSampler``.
        seed: 64 bits.
        views: Number of views.
        batch_size: Per process; must be the loader's.

    Raises:
        SetupError: If the loader has another sampler or batch size, or too few images for a batch per process.
    """
    sampler: Any = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    check_loader(loader)
    if loader.batch_size != batch_size:
        raise SetupError(
            f'The images of the cache were mixed in batches of {batch_size}, but the batches of this run have '
            f'{loader.batch_size}: give --cfg-options train_dataloader.batch_size={batch_size}, or make another cache.'
        )
    count, world = len(sampler.dataset), sampler.world_size
    if not steps_of(count, world, batch_size, loader.drop_last)[0]:
        raise SetupError(
            f'drop_last leaves no batch of {batch_size} of the {count} images for each of {world} processes; set '
            'train_dataloader.drop_last=False, or use fewer processes.'
        )
    rebase(sampler, _fixed_sampler)
    sampler._fnkd_seed, sampler._fnkd_views = seed, views
    sampler._fnkd_size, sampler._fnkd_drop_last = batch_size, loader.drop_last
