"""What a killed and resumed run, or one with other workers, ends with."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import InfiniteSampler

from fnkd_plugin.mm.hooks import reproducible_hook
from tests.helpers import distilled, resnet, timm_teacher, vit
from tests.test_mm.test_hooks.runs import RANDOM_PIPELINE, assert_resumes_exactly, batches, loader, run

MIXING = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
EMA = dict(type='EMAHook', momentum=0.1)
WORKERS = {
    'main process': dict(num_workers=0),
    'new workers': dict(num_workers=2, persistent_workers=False),
    'persistent workers': dict(num_workers=2, persistent_workers=True),
}


def small_vit(**options: object) -> dict:
    model = vit(**options)
    model['backbone']['img_size'] = 16
    return model


@pytest.mark.parametrize('workers', WORKERS.values(), ids=WORKERS)
@pytest.mark.upstream
def test_resumes_exactly(tmp_path: Path, workers: dict) -> None:
    model = small_vit(train_cfg=MIXING)
    assert_resumes_exactly(model, tmp_path, train_dataloader=loader(**workers), custom_hooks=[EMA])


@pytest.mark.upstream
def test_resumes_exactly_distilled_with_batch_norm_and_a_drawn_seed(tmp_path: Path) -> None:
    model = distilled(resnet(train_cfg=MIXING), timm_teacher(tmp_path), dict(type='FNKDLoss'))
    assert_resumes_exactly(model, tmp_path, randomness=dict(seed=None))


def test_resumes_exactly_with_accumulation(tmp_path: Path) -> None:
    optim = dict(optimizer=dict(type='AdamW', lr=1e-3), accumulative_counts=2)
    assert_resumes_exactly(small_vit(), tmp_path, optim_wrapper=optim)


ITERATIONS = dict(
    train_cfg=dict(by_epoch=False, max_iters=10, val_interval=100),
    default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)),
)


@pytest.mark.parametrize('workers', WORKERS.values(), ids=WORKERS)
@pytest.mark.parametrize('count', [16, 9])
@pytest.mark.upstream
def test_resumes_exactly_by_iterations(tmp_path: Path, workers: dict, count: int) -> None:
    # Several passes: 10 batches of 4 of 16 or 9 samples; cut off in the second or later.
    dataset = dict(type='RandomImages', count=count, pipeline=RANDOM_PIPELINE)
    data = loader(dataset, sampler=dict(type='InfiniteSampler', shuffle=True), **workers)
    assert_resumes_exactly(
        small_vit(), tmp_path, cut_off=8, train_dataloader=data, randomness=dict(seed=None), **ITERATIONS
    )


def test_passes_of_an_infinite_sampler_differ(tmp_path: Path) -> None:
    dataset = dict(type='RandomImages', count=8, pipeline=RANDOM_PIPELINE)
    data = loader(dataset, sampler=dict(type='InfiniteSampler', shuffle=False))
    seen = batches(small_vit(), tmp_path, train_dataloader=data, **ITERATIONS)
    assert len(seen) == 10
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[4])


@pytest.mark.parametrize('persistent', [False, True])
def test_resumes_exactly_with_a_switched_recipe(tmp_path: Path, persistent: bool) -> None:
    later = [dict(type='Resize', scale=16), dict(type='ColorJitter', brightness=0.5), dict(type='PackInputs')]
    schedule = [
        dict(action_epoch=1, batch_augments=MIXING),
        dict(action_epoch=3, train_pipeline=later, batch_augments=None),
    ]
    options = dict(
        custom_hooks=[dict(type='SwitchRecipeHook', schedule=schedule)],
        train_dataloader=loader(num_workers=2, persistent_workers=persistent),
        train_cfg=dict(by_epoch=True, max_epochs=4),
    )
    assert_resumes_exactly(small_vit(), tmp_path / 'before', cut_off=7, **options)
    assert_resumes_exactly(small_vit(), tmp_path / 'after', cut_off=14, **options)


@pytest.mark.parametrize('wrapper', ['ConcatDataset', 'RepeatDataset', 'ClassBalancedDataset'])
def test_resumes_exactly_with_wrapped_data_sets(tmp_path: Path, wrapper: str) -> None:
    inner = dict(type='RandomImages', count=8, pipeline=RANDOM_PIPELINE)
    dataset = {
        'ConcatDataset': dict(type=wrapper, datasets=[inner, dict(inner, seed=1)]),
        'RepeatDataset': dict(type=wrapper, dataset=inner, times=2),
        'ClassBalancedDataset': dict(type=wrapper, dataset=dict(inner, count=13), oversample_thr=0.5),
    }[wrapper]
    assert_resumes_exactly(small_vit(), tmp_path, train_dataloader=loader(dataset, num_workers=1))


def test_repeats_in_a_repeated_data_set_differ(tmp_path: Path) -> None:
    inner = dict(type='RandomImages', count=4, pipeline=RANDOM_PIPELINE)
    plain = dict(type='DefaultSampler', shuffle=False)
    data = loader(dict(type='RepeatDataset', dataset=inner, times=2), sampler=plain)
    first, second, *_ = batches(small_vit(), tmp_path, train_dataloader=data)
    assert not torch.equal(first, second)


def test_repeated_augmentations_differ(tmp_path: Path) -> None:
    sampler = dict(type='RepeatAugSampler', num_repeats=3, shuffle=False)
    data = loader(dict(type='RandomImages', count=256, pipeline=RANDOM_PIPELINE), batch_size=3, sampler=sampler)
    stop = dict(train_cfg=dict(by_epoch=True, max_epochs=1))
    for batch in batches(small_vit(), tmp_path, train_dataloader=data, **stop)[:5]:
        assert not torch.equal(batch[0], batch[1])
        assert not torch.equal(batch[1], batch[2])
        assert not torch.equal(batch[0], batch[2])


@pytest.mark.upstream
def test_batches_are_the_same_for_any_workers_and_epochs_differ(tmp_path: Path) -> None:
    unshuffled = dict(sampler=dict(type='DefaultSampler', shuffle=False))
    runs = [
        batches(small_vit(), tmp_path / str(i), train_dataloader=loader(**unshuffled, **workers))
        for i, workers in enumerate([*WORKERS.values(), dict(num_workers=3)])
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    first, second = runs[0][:4], runs[0][4:]
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_plain_and_distilled_see_the_same_batches(tmp_path: Path) -> None:
    plain = batches(resnet(), tmp_path / 'plain')
    taught = batches(distilled(resnet(), timm_teacher(tmp_path)), tmp_path / 'taught')
    assert all(torch.equal(a, b) for a, b in zip(plain, taught, strict=True))


def test_another_seed_gives_other_batches(tmp_path: Path) -> None:
    a, b = (batches(small_vit(), tmp_path / str(seed), randomness=dict(seed=seed)) for seed in (0, 1))
    assert not any(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_samplers_own_seed_stays(tmp_path: Path) -> None:
    sampler = dict(type='DefaultSampler', shuffle=True, seed=123)
    runner = run(small_vit(), tmp_path, train_dataloader=loader(sampler=sampler))
    assert runner.train_dataloader.sampler.seed == 123


def test_a_seed_of_each_process_leaves_the_order_common(monkeypatch: pytest.MonkeyPatch) -> None:
    # MMEngine's own seed of process 2 of a run with seed 5; shards of two orders would overlap.
    runner = SimpleNamespace(seed=7, _randomness_cfg=dict(diff_rank_seed=True))
    monkeypatch.setattr(reproducible_hook, 'get_rank', lambda: 2)
    assert reproducible_hook._common_seed(runner) == 5
    runner._randomness_cfg = dict(seed=7)
    assert reproducible_hook._common_seed(runner) == 7


def test_objects_keep_their_types(tmp_path: Path) -> None:
    data = loader(sampler=dict(type='InfiniteSampler'))
    runner = run(small_vit(), tmp_path, train_dataloader=data, **ITERATIONS)
    assert isinstance(runner.train_dataloader.sampler, InfiniteSampler)
    assert runner.train_dataloader.dataset.metainfo['classes'] == ['c0', 'c1', 'c2', 'c3']
