import math
import pickle
from typing import Any

import numpy as np
import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Sampler

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay.fixed_batches import fix_batches, order_of
from fnkd_plugin.mm.replay.seeded_dataset import number_views
from tests.helpers import RandomImages


def _loader(rank: int = 0, world: int = 1, count: int = 10, size: int = 4, drop_last: bool = False) -> DataLoader:
    dataset = RandomImages(count=count)
    sampler = DefaultSampler(dataset, seed=0)
    sampler.rank, sampler.world_size = rank, world
    return DataLoader(dataset, batch_size=size, sampler=sampler, drop_last=drop_last)


def _batches(loader: Any, epoch: int) -> list[list[tuple[int, int, int]]]:
    loader.sampler.set_epoch(epoch)
    return [[(int(i), i.view, i.batch) for i in batch] for batch in loader.batch_sampler]


@pytest.mark.parametrize(
    ('count', 'drop_last'), [(3, False), (8, False), (12, True), (10, False), (14, True), (59, False), (59, True)]
)
@pytest.mark.parametrize('world', [1, 2, 3])
def test_processes_share_the_batches_of_one(world: int, count: int, drop_last: bool) -> None:
    order, whole = order_of(5, 1, count).tolist(), count // 4
    expected = [[(i, 1, b) for i in order[4 * b : 4 * b + 4]] for b in range(whole if drop_last else -(-count // 4))]
    found = []
    for rank in range(world):
        loader = _loader(rank, world, count, drop_last=drop_last)
        # As many as without us: MMEngine has planned the schedule already.
        steps = math.ceil(count / world) // 4 if drop_last else math.ceil(count / world / 4)
        fix_batches(loader, 5, 2, 4)
        batches = _batches(loader, 3)
        assert len(batches) == len(loader) == steps
        found.append(batches)
    together = [batch for step in zip(*found, strict=True) for batch in step]
    # Epoch 3 is the second pass through two views, which begins with what drop_last left out of the first.
    first = len(together) if drop_last else 0
    assert together == [expected[(first + i) % len(expected)] for i in range(len(together))]


@pytest.mark.parametrize(('count', 'world'), [(120, 4), (50, 8)])
def test_no_batch_is_dropped_for_ever(count: int, world: int) -> None:
    seen: set[int] = set()
    for rank in range(world):
        loader = _loader(rank, world, count, drop_last=True)
        fix_batches(loader, 5, 1, 4)
        seen.update(batch for epoch in range(5) for [(*_, batch), *_] in _batches(loader, epoch))
    assert seen == set(range(count // 4))


def test_views_have_orders_of_their_own_that_come_again() -> None:
    loader = _loader()
    fix_batches(loader, 5, 2, 4)
    epochs = [_batches(loader, epoch) for epoch in range(4)]
    assert epochs[0] == epochs[2] != epochs[1] == epochs[3]
    assert sorted(i for batch in epochs[0] for i, *_ in batch) == list(range(10))
    other = _loader()
    fix_batches(other, 6, 2, 4)
    assert _batches(other, 0) != epochs[0]


def test_an_order_is_a_permutation() -> None:
    np.testing.assert_array_equal(np.sort(order_of(2**64 - 1, 3, 1000)), np.arange(1000))
    assert not np.array_equal(order_of(1, 0, 1000), order_of(1, 1, 1000))


def test_fixing_twice_sets_anew_and_pickling_keeps() -> None:
    loader, again = _loader(), _loader()
    fix_batches(loader, 1, 1, 4)
    fix_batches(loader, 5, 2, 4)
    fix_batches(again, 5, 2, 4)
    assert _batches(loader, 1) == _batches(again, 1)
    copy = pickle.loads(pickle.dumps(loader.sampler))
    copy.set_epoch(1)
    assert list(copy) == [i for batch in _batches(again, 1) for i, *_ in batch]


def test_a_sampler_may_be_used_by_another_run() -> None:
    loader, fresh = _loader(), _loader()
    plain = list(loader.sampler)
    fix_batches(loader, 5, 2, 4)
    number_views(loader.sampler, 3)
    assert [(int(i), i.view, i.batch) for i in loader.sampler] == [(int(i), 0, 0) for i in plain]
    fix_batches(loader, 5, 2, 4)
    fix_batches(fresh, 5, 2, 4)
    assert _batches(loader, 1) == _batches(fresh, 1)


def test_what_cannot_be_fixed_is_refused() -> None:
    with pytest.raises(SetupError, match=r'in batches of 8, .* have 4: give .*train_dataloader\.batch_size=8'):
        fix_batches(_loader(), 0, 1, 8)
    with pytest.raises(SetupError, match='drop_last leaves no batch of 4 of the 6 images for each of 2 processes'):
        fix_batches(_loader(count=6, world=2, drop_last=True), 0, 1, 4)
    dataset = RandomImages(count=8)
    infinite = DataLoader(dataset, batch_size=4, sampler=InfiniteSampler(dataset))
    with pytest.raises(SetupError, match='InfiniteSampler makes batches of its own'):
        fix_batches(infinite, 0, 1, 4)
    composed = DataLoader(dataset, batch_sampler=Pairs(dataset))
    with pytest.raises(SetupError, match='Pairs makes batches of its own'):
        fix_batches(composed, 0, 1, 2)
    sorted_ones = DataLoader(dataset, batch_size=4, sampler=DefaultSampler(dataset, shuffle=False))
    with pytest.raises(SetupError, match=r'sampler\.shuffle=True'):
        fix_batches(sorted_ones, 0, 1, 4)


class Pairs(Sampler):
    """A batch sampler of its own."""

    def __init__(self, dataset: Any) -> None:
        self.count = len(dataset)

    def __iter__(self) -> Any:
        return iter([[i, i + 1] for i in range(0, self.count, 2)])
