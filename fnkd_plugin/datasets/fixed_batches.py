"""Batches that come again in every run: where images of a batch are mixed, the same ones must meet."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from fnkd_plugin.datasets.seeded_dataset import SampleIndex, derive_seed, named_after, remade
from fnkd_plugin.errors import SetupError


def order_of(seed: int, view: int, count: int) -> np.ndarray:
    """In which order a view draws ``count`` samples, a permutation; batch b has those from ``b * batch_size`` on.

    Args:
        seed: 64 bits, see :func:`~fnkd_plugin.datasets.seeded_dataset.data_seed`.
        view: Its number.
        count: How many there are.
    """
    return np.random.Generator(np.random.PCG64(derive_seed(seed, view))).permutation(count)


@functools.cache
def _fixed_sampler(base: type) -> type:
    class Fixed(base):
        def _rounds(self) -> int:
            # As many as the loader has without us.
            share = -(-len(self.dataset) // self.world_size)
            return share // self._fnkd_size if self._fnkd_drop_last else -(-share // self._fnkd_size)

        def _batches(self) -> Iterator[int]:
            whole, rest = divmod(len(self.dataset), self._fnkd_size)
            count = whole + (rest > 0 and not self._fnkd_drop_last)
            for i in range(self._rounds()):
                # The last round of several processes begins anew where batches are lacking.
                yield (i * self.world_size + self.rank) % count

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
            return remade, (_fixed_sampler, base), self.__dict__

    return named_after(base, Fixed)


def check_sampler(sampler: Any) -> None:
    """Refuse samplers whose batches cannot be fixed.

    Raises:
        SetupError: If it is no ``DefaultSampler``.
    """
    if type(sampler) is not DefaultSampler:
        raise SetupError(
            f'{type(sampler).__name__} makes batches of its own, but a cache of mixed images knows those images '
            'together that its teacher saw together: train with DefaultSampler, without Mixup and CutMix, or with a '
            'live teacher.'
        )


def fix_batches(loader: DataLoader, seed: int, views: int, batch_size: int) -> None:
    """Make a loader's sampler draw the batches of :func:`order_of`, in place.

    Epoch e draws those of view ``e % views``. Of several processes each takes every so many-th batch, so that the
    batches do not depend on their number. A second call changes the arguments.

    Args:
        loader: Its sampler is a ``DefaultSampler``.
        seed: 64 bits.
        views: How many there are.
        batch_size: Of a process; the loader's.

    Raises:
        SetupError: If the loader has another sampler or batch size, or fewer images than a batch.
    """
    sampler: Any = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    if not hasattr(sampler, '_fnkd_size'):
        check_sampler(sampler)
    if loader.batch_size != batch_size:
        raise SetupError(
            f'The mixed images of the cache were mixed in batches of {batch_size}, but the batches of this run have '
            f'{loader.batch_size}: give --cfg-options train_dataloader.batch_size={batch_size}, or make a cache for '
            'these.'
        )
    if loader.drop_last and len(sampler.dataset) < batch_size:
        raise SetupError(f'drop_last leaves none of the {len(sampler.dataset)} images, which are less than a batch.')
    if not hasattr(sampler, '_fnkd_size'):
        sampler.__class__ = _fixed_sampler(DefaultSampler)
    sampler._fnkd_seed, sampler._fnkd_views = seed, views
    sampler._fnkd_size, sampler._fnkd_drop_last = batch_size, loader.drop_last
