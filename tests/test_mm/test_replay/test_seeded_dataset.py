import inspect
import pickle

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler, default_collate
from mmpretrain.datasets.samplers import RepeatAugSampler
from torch.utils.data import DataLoader

from fnkd_plugin.mm.replay import seeded_dataset
from fnkd_plugin.mm.replay.seeded_dataset import Replay, SampleIndex, data_seed, derive_seed, number_views, seed_samples
from tests.helpers import RandomImages


def views(sampler_type: type, world: int, count: int, monkeypatch: pytest.MonkeyPatch, **options: object) -> list:
    """The (index, view, time) of each process's sampler."""
    found = []
    for rank in range(world):
        monkeypatch.setattr(seeded_dataset, 'get_dist_info', lambda rank=rank: (rank, world))
        # Each sampler imports the function into its own module.
        module = inspect.getmodule(sampler_type)
        monkeypatch.setattr(module, 'get_dist_info', lambda rank=rank: (rank, world))
        sampler = sampler_type(RandomImages(count=count), seed=0, **options)
        number_views(sampler)
        stream = iter(sampler)
        found.append([(int(i), i.view, i.time) for i, _ in zip(stream, range(2 * count // world), strict=False)])
    return found


def test_no_repeat_gets_the_augmentation_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (1, 2, 3):
        ranks = views(RepeatAugSampler, world, 300, monkeypatch, num_repeats=3)
        drawn = [view for rank in ranks for view in rank]
        assert len(set(drawn)) == len(drawn)


def test_processes_together_draw_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    [one] = views(InfiniteSampler, 1, 9, monkeypatch)
    two = views(InfiniteSampler, 2, 9, monkeypatch)
    assert sorted(one) == sorted(two[0] + two[1])
    assert [view for _, view, _ in one] == [0] * 9 + [1] * 9


def test_a_default_sampler_draws_each_sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {time for *_, time in views(DefaultSampler, 1, 9, monkeypatch)[0]} == {0}


def test_a_skipping_sampler_goes_on_in_its_pass() -> None:
    sampler = InfiniteSampler(RandomImages(count=4), shuffle=False, seed=0)
    if not hasattr(sampler, 'skip'):
        pytest.skip("upstream's sampler cannot")
    number_views(sampler)
    sampler.skip(5)
    first = next(iter(sampler))
    assert (int(first), first.view) == (1, 1)


def test_seeded_objects_survive_pickling() -> None:
    dataset = RandomImages(pipeline=[dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')])
    seed_samples(dataset, 3)
    copy, index = pickle.loads(pickle.dumps((dataset, SampleIndex(2, 5, 1))))
    assert (index, index.view, index.time) == (2, 5, 1)
    assert isinstance(copy, RandomImages)
    assert (copy[index]['inputs'] == dataset[index]['inputs']).all()


def test_seeds_depend_on_every_number_and_their_order() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2**40), (2**40, 0), (2**63, 1)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


class LoadsBatches(RandomImages):
    """Loads a batch at once, as data sets of torchvision and Hugging Face may."""

    def __getitems__(self, indices: list) -> list:
        return [RandomImages.__getitem__(self, index) for index in indices]


def test_a_dataset_that_loads_batches_is_seeded() -> None:
    pipeline = [dict(type='RandomResizedCrop', scale=16), dict(type='PackInputs')]

    def batch(kind: type) -> torch.Tensor:
        dataset = kind(pipeline=pipeline)
        seed_samples(dataset, 3)
        return next(iter(DataLoader(dataset, batch_size=4, collate_fn=default_collate)))['inputs']

    assert torch.equal(batch(LoadsBatches), batch(RandomImages))


def test_no_replay_has_the_seed_of_a_run() -> None:
    runs = {data_seed(seed) for seed in range(1000)}
    assert not runs & {Replay(seed, 1).data_seed for seed in range(1000)}
