"""A data set whose augmentations depend on nothing but (seed, view, sample)."""

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_dist_info


class SampleIndex(int):
    """An index into a data set that knows in which view (epoch, and time in it) the sample is drawn."""

    epoch: int
    time: int

    def __new__(cls, index: int, epoch: int, time: int) -> 'SampleIndex':  # noqa: D102
        self = super().__new__(cls, index)
        self.epoch, self.time = epoch, time
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.epoch, self.time)


def derive_seed(*key: int) -> int:
    """A 64-bit seed that depends on every number of ``key``, >= 0, and their order, among keys of one length."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, CUDA's only where CUDA is in use.

    ``torch.manual_seed`` would note down a stack trace for CUDA's later start, at ten times the price.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed % 2**63)


@functools.cache
def _seeded_dataset(base: type) -> type:
    class Seeded(base):
        def __getitem__(self, index: int) -> Any:
            epoch, time = getattr(index, 'epoch', 0), getattr(index, 'time', 0)
            seed_all(derive_seed(self._fnkd_seed, epoch, time, int(index)))
            return super().__getitem__(int(index))

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _new, (_seeded_dataset, base), self.__dict__

    return _named_after(base, Seeded)


@functools.cache
def _view_sampler(base: type) -> type:
    class View(base):
        if issubclass(base, InfiniteSampler):

            def _indices_of_rank(self) -> Iterator[SampleIndex]:
                # Below MMEngine's skipping on resumption, which drops the first of these.
                place = itertools.count(self.rank, self.world_size)
                for index, i in zip(super()._indices_of_rank(), place, strict=False):
                    yield SampleIndex(index, 0, i // self.size)

        else:

            def __iter__(self) -> Iterator[SampleIndex]:
                # A sampler that repeats samples may do so on another process, which cannot be seen from here.
                rank, step = 0, 1
                if not isinstance(self, DefaultSampler):
                    rank, step = get_dist_info()
                seen: dict[int, int] = {}
                epoch = getattr(self, 'epoch', 0)
                for index in super().__iter__():
                    time = seen.get(index, rank)
                    seen[index] = time + step
                    yield SampleIndex(index, epoch, time)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _new, (_view_sampler, base), self.__dict__

    return _named_after(base, View)


def _named_after(base: type, cls: type) -> type:
    cls.__name__ = cls.__qualname__ = cls.__name__ + base.__name__
    cls.__module__ = base.__module__
    return cls


def _new(make: Callable[[type], type], base: type) -> Any:
    # Pickle cannot find a class made at run time, so it is told how to make it.
    cls: Any = make(base)
    return cls.__new__(cls)


def make_seeded(dataset: Any, sampler: Any, seed: int) -> None:
    """Seed all generators before each sample of a data set from (``seed``, epoch, time in it, sample), in place.

    The objects' classes change to subclasses of their own, so that they stay what they are: hooks that swap
    the pipeline, wrappers and ``metainfo`` work, in the worker processes too, whatever their number and age.
    The time in the epoch counts how often the sample has come before: samplers that repeat one for several
    augmentations get several, and so do samplers without epochs, pass by pass. A second call changes the seed.
    """
    if not hasattr(dataset, '_fnkd_seed'):
        dataset.__class__ = _seeded_dataset(type(dataset))  # type: ignore[arg-type]
        sampler.__class__ = _view_sampler(type(sampler))  # type: ignore[arg-type]
    dataset._fnkd_seed = seed
    if isinstance(sampler, InfiniteSampler):
        sampler.indices = sampler._indices_of_rank()
