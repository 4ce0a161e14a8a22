"""Data sets whose augmentations depend on (seed, view, sample) alone."""

import functools
import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_dist_info

from fnkd_plugin.errors import SetupError


class Replay(NamedTuple):
    """The views that a run repeats: epoch e has the augmentations of view ``e % views`` under ``seed``.

    Attributes:
        seed: Seed of the augmentations; the rest of a run has its own.
        views: Number of views of each image.
        batch_size: Size of batches to repeat, too, which mixed images need; None if batches are not repeated.
    """

    seed: int
    views: int
    batch_size: int | None = None

    @property
    def data_seed(self) -> int:
        """The seed for :func:`seed_samples`; never that of a run, so that no teacher was trained on these crops."""
        return derive_seed(self.seed, 2)


class SampleIndex(int):
    """An index into a data set, with the view (epoch, or pass) in which it is drawn.

    Attributes:
        view: Number of the view.
        time: How often the index was drawn before in this view.
        batch: Number of the batch, if batches are fixed (:mod:`fnkd_plugin.mm.replay.fixed_batches`).
    """

    view: int
    time: int
    batch: int

    def __new__(cls, index: int, view: int, time: int = 0, batch: int = 0) -> 'SampleIndex':  # noqa: D102
        self = super().__new__(cls, index)
        self.view, self.time, self.batch = view, time, batch
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.view, self.time, self.batch)


class Stamp(NamedTuple):
    """The origin of a replayed data sample, stored as its ``stamp``.

    Attributes:
        view: Number of the view.
        sample: Index in the outermost data set; ``sample_idx`` is that in the innermost one.
        pixels: Checksum of the image, see :func:`checksum`.
        batch: Number of the batch in the view, if batches are fixed.
    """

    view: int
    sample: int
    pixels: int
    batch: int = 0


def checksum(image: torch.Tensor) -> int:
    """CRC-32 of the image's elements in C order."""
    return zlib.crc32(np.ascontiguousarray(image.numpy()).data)


def derive_seed(*key: int) -> int:
    """A 64-bit seed (BLAKE2b) that depends on each number of ``key`` and on their order."""
    text = ' '.join(str(int(number)) for number in key)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), 'little')


def data_seed(seed: int) -> int:
    """The seed for :func:`seed_samples` in a run that does not replay views."""
    return derive_seed(seed, 0)


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """The seed of a process in an iteration."""
    return derive_seed(seed, 1, rank, iteration)


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, and of CUDA if it is initialised.

    ``torch.manual_seed`` would record a stack trace for CUDA's initialisation, which takes ten times as long.
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
            view, time = getattr(index, 'view', 0), getattr(index, 'time', 0)
            seed_all(derive_seed(self._fnkd_seed, view, time, int(index)))
            sample = super().__getitem__(int(index))
            if self._fnkd_stamps:
                _stamp(sample, view, int(index), getattr(index, 'batch', 0))
            return sample

        @property
        def __getitems__(self) -> Any:
            # Hidden, so that the loader calls __getitem__, which seeds each sample.
            raise AttributeError('__getitems__')

        def __reduce_ex__(self, protocol: Any) -> Any:
            return new_instance, (_seeded_dataset, base), self.__dict__

    return named_after(base, Seeded)


def _stamp(sample: Any, view: int, index: int, batch: int) -> None:
    try:
        stamp = Stamp(view, index, checksum(sample['inputs']), batch)
        sample['data_samples'].set_field(stamp, 'stamp', field_type='metainfo')
    except (TypeError, KeyError, AttributeError) as error:
        raise SetupError(
            f'A replayed data set must return one image tensor and its data sample, as PackInputs does: {error}.'
        ) from error


@functools.cache
def _view_sampler(base: type) -> type:
    class View(base):
        def _view(self, epoch: int) -> int:
            return epoch % self._fnkd_views if self._fnkd_views else epoch

        if issubclass(base, InfiniteSampler):

            def _indices_of_rank(self) -> Iterator[SampleIndex]:
                # MMEngine drops the first of these when it resumes. A pass is an epoch.
                positions = itertools.count(self.rank, self.world_size)
                for index, i in zip(super()._indices_of_rank(), positions, strict=False):
                    yield SampleIndex(index, self._view(i // self.size))

        else:

            def __iter__(self) -> Iterator[SampleIndex]:
                view = self._view(getattr(self, 'epoch', 0))
                if base is DefaultSampler:  # draws each sample once
                    yield from (SampleIndex(index, view) for index in super().__iter__())
                    return
                # A sampler that repeats samples may draw the same one in another process, too.
                rank, step = 0, 1
                if not isinstance(self, DefaultSampler):
                    rank, step = get_dist_info()
                seen: dict[int, int] = {}
                for index in super().__iter__():
                    time = seen.get(index, rank)
                    seen[index] = time + step
                    if time and self._fnkd_views:
                        raise SetupError(
                            f'{base.__name__} draws an image several times per epoch, or may, but a view has one '
                            'augmentation of each image; train with DefaultSampler, or with a live teacher.'
                        )
                    yield SampleIndex(index, view, time)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return new_instance, (_view_sampler, base), self.__dict__

    return named_after(base, View)


def named_after(base: type, cls: type) -> type:
    """Name a class made at run time after its base."""
    cls.__name__ = cls.__qualname__ = cls.__name__ + base.__name__
    cls.__module__ = base.__module__
    return cls


def rebase(obj: Any, make: Callable[[type], type]) -> None:
    """Change an object's class to ``make`` of its original class."""
    obj._fnkd_base = base_of(obj)
    obj.__class__ = make(obj._fnkd_base)


def base_of(obj: Any) -> type:
    """The class of an object before :func:`rebase`."""
    return getattr(obj, '_fnkd_base', type(obj))


def new_instance(make: Callable[[type], type], base: type) -> Any:
    """An empty object of a class made at run time, for pickle, which cannot import such a class."""
    cls: Any = make(base)
    return cls.__new__(cls)


def seed_samples(dataset: Any, seed: int, stamps: bool = False) -> None:
    """Seed all generators before each sample of a data set from (``seed``, view, repetition, sample), in place.

    The object's class changes to a subclass of its own class, so that hooks that swap the pipeline, wrappers and
    ``metainfo`` still work, also in worker processes. A second call changes the seed.

    Args:
        dataset: Any data set. View and repetition come from a :class:`SampleIndex`, and are 0 for an int.
        seed: 64 bits.
        stamps: Whether each sample gets a :class:`Stamp`.
    """
    rebase(dataset, _seeded_dataset)
    dataset._fnkd_seed = seed
    dataset._fnkd_stamps = stamps


def number_views(sampler: Any, views: int | None = None) -> None:
    """Make a sampler draw :class:`SampleIndex`, in place.

    The view is the epoch, or the pass of a sampler without epochs. A sample that is drawn several times in a view is
    augmented differently each time. A second call changes ``views``.

    Args:
        sampler: Any sampler of indices; its class changes to a subclass of its own class.
        views: Number of epochs after which views repeat; None for never.

    Raises:
        SetupError: While it draws, if there are ``views`` and it draws a sample again within an epoch.
    """
    rebase(sampler, _view_sampler)
    sampler._fnkd_views = views
    if isinstance(sampler, InfiniteSampler):
        sampler.indices = sampler._indices_of_rank()
