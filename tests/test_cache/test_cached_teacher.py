"""Students of a cache train as those of the live teacher do, on the images that it saw, or not at all."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmpretrain.registry import HOOKS, TRANSFORMS

from fnkd_plugin.cache.store import Store
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay.seeded_dataset import Replay, SampleIndex
from tests.helpers import assert_same_weights, build, distilled, resnet, timm_checkpoint, timm_teacher
from tests.test_cache.caches import cached, make_cache, spoil, with_manifest
from tests.test_mm.test_hooks.runs import RANDOM_PIPELINE, assert_resumes_exactly, batches, loader, run

FNKD = dict(type='FNKDLoss', tau=5.0)
VIEWS = dict(default_hooks=dict(reproducible=dict(type='ReproducibleHook', replay=dict(seed=0, views=2))))
"""What makes a run with a live teacher see the views of a cache."""
PACK = dict(type='PackInputs')
CROP = RANDOM_PIPELINE[0]
PIPELINES = {
    'RandomResizedCrop': RANDOM_PIPELINE,
    'RandAugment': [
        dict(
            type='RandAugment',
            policies='timm_increasing',
            num_policies=2,
            total_level=10,
            magnitude_level=9,
            magnitude_std=0.5,
        ),
        CROP,
        PACK,
    ],
    'RandomErasing': [CROP, dict(type='RandomErasing', erase_prob=0.9, mode='rand'), PACK],
    'ColorJitter': [CROP, dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4), PACK],
    'torchvision': [
        dict(type='NumpyToPIL'),
        dict(type='torchvision/RandomResizedCrop', size=16),
        dict(type='torchvision/RandomAffine', degrees=20),
        dict(type='PILToNumpy'),
        PACK,
    ],
}
WORKERS = {
    'main process': dict(num_workers=0),
    'new workers': dict(num_workers=3, persistent_workers=False),
    'persistent workers': dict(num_workers=2, persistent_workers=True),
}


@HOOKS.register_module(force=True)
class Losses(Hook):
    """Keeps the losses of a run."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(float(outputs['loss_soft']))


@TRANSFORMS.register_module(force=True)
class UnseededNoise(BaseTransform):
    """Random by a generator of its own, which nobody can seed."""

    def transform(self, results: dict) -> dict:
        results['img'] = np.random.default_rng().integers(0, 256, results['img'].shape).astype(np.uint8)
        return results


def _losses(model: dict, work_dir: Path, **options: Any) -> np.ndarray:
    runner = run(model, work_dir, custom_hooks=[dict(type='Losses')], **options)
    return np.array(next(hook for hook in runner.hooks if isinstance(hook, Losses)).losses)


def _epochs(count: int, **options: Any) -> dict:
    return dict(train_cfg=dict(by_epoch=True, max_epochs=count), **options)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of 16 images by a ``test_resnet``, read by many tests."""
    init_default_scope('mmpretrain')
    path = tmp_path_factory.mktemp('cached')
    make_cache(path / 'cache', timm_teacher(path))
    return path


@pytest.mark.parametrize('kind', PIPELINES)
def test_training_sees_what_the_teacher_saw(kind: str, tmp_path: Path) -> None:
    data = loader(dict(type='RandomImages', count=8, pipeline=PIPELINES[kind]))
    cache = make_cache(tmp_path / 'cache', timm_teacher(tmp_path), train_dataloader=data)
    seen = batches(distilled(resnet(), cached(cache)), tmp_path, train_dataloader=data, **_epochs(4))
    images = [{image.numpy().tobytes() for batch in seen[2 * e : 2 * e + 2] for image in batch} for e in range(4)]
    assert images[0] == images[2] and images[1] == images[3]
    # Crops of random noise are never equal by chance.
    assert all(len(view) == 8 for view in images) and not images[0] & images[1]


@pytest.mark.parametrize('workers', WORKERS.values(), ids=WORKERS)
@pytest.mark.upstream
def test_workers_do_not_matter(workers: dict, folder: Path, tmp_path: Path) -> None:
    model = distilled(resnet(), cached(str(folder / 'cache')), FNKD)
    losses = _losses(model, tmp_path / 'these', train_dataloader=loader(**workers), **_epochs(3))
    np.testing.assert_array_equal(losses, _losses(model, tmp_path / 'none', **_epochs(3)))


@pytest.mark.parametrize('loss', [dict(type='FNKDLoss'), dict(type='DISTLoss')])
# Batch norm over four values makes rounding grow from step to step.
@pytest.mark.parametrize(('dtype', 'steps', 'tolerance'), [('float16', 2, 4e-3), ('float32', 8, 1e-5)])
def test_equals_the_live_teacher(
    loss: dict, dtype: str, steps: int, tolerance: float, folder: Path, tmp_path: Path
) -> None:
    teacher = timm_teacher(folder)
    cache = make_cache(tmp_path / 'cache', teacher, dtype=dtype)
    live = _losses(distilled(resnet(), teacher, loss), tmp_path / 'live', **VIEWS)
    replayed = _losses(distilled(resnet(), cached(cache), loss), tmp_path / 'replayed')
    assert len(live) == 8
    np.testing.assert_allclose(replayed[:steps], live[:steps], rtol=tolerance)


def test_seeds_of_the_run_and_of_the_views_are_apart(folder: Path, tmp_path: Path) -> None:
    def seen(name: str, seed: int) -> list[torch.Tensor]:
        model = distilled(resnet(), cached(str(folder / 'cache')))
        return torch.cat(batches(model, tmp_path / name, randomness=dict(seed=seed), **_epochs(1)))

    a, b = seen('a', 1), seen('b', 2)
    assert not torch.equal(a, b)
    assert torch.equal(*(x.flatten(1).sort(0).values for x in (a, b)))


@pytest.mark.upstream
def test_off_is_plain(folder: Path, tmp_path: Path) -> None:
    off = distilled(resnet(), cached(str(folder / 'cache')), dict(type='KDLoss', loss_weight=0))
    replay = dict(default_hooks=dict(reproducible=dict(type='ReproducibleHook', replay=dict(seed=0, views=2))))
    plain = run(resnet(), tmp_path / 'plain', **_epochs(3, **replay)).model
    assert_same_weights(plain.state_dict(), run(off, tmp_path / 'off', **_epochs(3)).model.state_dict())


def test_another_replay_than_the_caches_is_refused(folder: Path, tmp_path: Path) -> None:
    hook = dict(type='ReproducibleHook', replay=dict(seed=1, views=2))
    with pytest.raises(SetupError, match=r'replay is Replay\(seed=1, views=2, .* but .* Replay\(seed=0, views=2, '):
        run(distilled(resnet(), cached(str(folder / 'cache'))), tmp_path, default_hooks=dict(reproducible=hook))


def test_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    model = distilled(resnet(), cached(str(folder / 'cache')), dict(type='FNKDLoss'))
    assert_resumes_exactly(model, tmp_path, cut_off=10, train_dataloader=loader(num_workers=1), **_epochs(3))


@pytest.mark.upstream
def test_passes_of_an_infinite_sampler_are_views(folder: Path, tmp_path: Path) -> None:
    data = loader(sampler=dict(type='InfiniteSampler', shuffle=False), num_workers=1)
    options = dict(train_dataloader=data, train_cfg=dict(by_epoch=False, max_iters=12, val_interval=100))
    seen = batches(distilled(resnet(), cached(str(folder / 'cache'))), tmp_path, **options)
    assert torch.equal(seen[0], seen[8]) and not torch.equal(seen[0], seen[4])


def test_repeated_augmentations_are_refused(folder: Path, tmp_path: Path) -> None:
    data = loader(sampler=dict(type='RepeatAugSampler', num_repeats=3))
    with pytest.raises(SetupError, match='RepeatAugSampler draws an image several times'):
        run(distilled(resnet(), cached(str(folder / 'cache'))), tmp_path, train_dataloader=data)


@pytest.mark.parametrize(
    ('recipe', 'refused'),
    [
        (dict(train_pipeline=[CROP, PACK]), True),
        (dict(batch_augments=dict(augments=dict(type='Mixup', alpha=0.8))), True),
        (dict(batch_augments=None, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)), False),
    ],
)
def test_switched_images_are_refused(recipe: dict, refused: bool, folder: Path, tmp_path: Path) -> None:
    hooks = [dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=2, **recipe)])]
    model = distilled(resnet(), cached(str(folder / 'cache')))
    if refused:
        with pytest.raises(SetupError, match=f'SwitchRecipeHook sets other {next(iter(recipe))} at epoch 2'):
            run(model, tmp_path, custom_hooks=hooks)
    else:
        run(model, tmp_path, custom_hooks=hooks)


def test_a_live_teacher_may_switch_them(folder: Path, tmp_path: Path) -> None:
    """On replayed views too, with which a plain run and one from a cache are compared."""
    hooks = [dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=2, train_pipeline=[CROP, PACK])])]
    replayed = dict(reproducible=dict(type='ReproducibleHook', replay=dict(seed=0, views=2)))
    run(distilled(resnet(), timm_teacher(folder)), tmp_path, custom_hooks=hooks, default_hooks=replayed)


@pytest.mark.slow
def test_compiles_to_the_same(folder: Path, tmp_path: Path) -> None:
    """The look-up itself is not compiled."""
    model = distilled(resnet(), cached(str(folder / 'cache')), FNKD)
    compiled = _losses(model, tmp_path / 'compiled', compile=dict(backend='aot_eager'))
    np.testing.assert_allclose(compiled, _losses(model, tmp_path / 'eager'), rtol=1e-4)


def test_other_images_are_refused(folder: Path, tmp_path: Path) -> None:
    model = distilled(resnet(), cached(str(folder / 'cache')))
    data = loader(dict(type='RandomImages', seed=5, pipeline=RANDOM_PIPELINE))
    with pytest.raises(SetupError, match=r'training images are not those of .*cache: data\.annotations: '):
        run(model, tmp_path, train_dataloader=data)
    data = loader(dict(type='RandomImages', pipeline=[dict(CROP, scale=24), PACK]))
    with pytest.raises(SetupError, match=r'data\.pipeline\[0\]: .*RandomResizedCrop\(scale=\(16, 16\)'):
        run(model, tmp_path, train_dataloader=data)
    with pytest.raises(SetupError, match=r'images are \[3, 32, 32\] .* those of the cache \[3, 16, 16\]'):
        padding = dict(resnet()['data_preprocessor'], pad_size_divisor=32)
        run(distilled(resnet(data_preprocessor=padding), cached(str(folder / 'cache'))), tmp_path)


def test_one_wrong_pixel_stops_training(folder: Path, tmp_path: Path) -> None:
    runner_model = build(distilled(resnet(), cached(str(folder / 'cache'))))
    teacher = runner_model.distillation.teacher
    dataset = _stamped(folder)
    good = [dataset[SampleIndex(i, 1)]['data_samples'] for i in range(3)]
    assert torch.isfinite(teacher.predict(torch.zeros(3, 3, 16, 16), good).logits).all()
    bad = copy.deepcopy(good)
    bad[1].set_field(good[1].stamp._replace(pixels=1), 'stamp', field_type='metainfo')
    with pytest.raises(RuntimeError, match=r'1 of 3 images are not those .*\(random_1\.png\)'):
        teacher.predict(torch.zeros(3, 3, 16, 16), bad)


def test_what_cannot_be_seeded_stops_training(tmp_path: Path) -> None:
    data = loader(dict(type='RandomImages', count=4, pipeline=[CROP, dict(type='UnseededNoise'), PACK]))
    cache = make_cache(tmp_path / 'cache', timm_teacher(tmp_path), train_dataloader=data)
    with pytest.raises(RuntimeError, match=r'4 of 4 images are not those .*random in the pipeline'):
        run(distilled(resnet(), cached(cache)), tmp_path, train_dataloader=data)


def test_images_that_nobody_replays_are_refused(folder: Path, tmp_path: Path) -> None:
    model = distilled(resnet(), cached(str(folder / 'cache')))
    with pytest.raises(SetupError, match=r'add default_hooks=dict\(reproducible='):
        run(model, tmp_path, default_hooks=dict(reproducible=None))


def test_a_cache_that_is_not_complete_is_refused(folder: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / 'cache', timm_teacher(folder))
    (tmp_path / 'cache' / 'view-0001.done').write_bytes(b'\0')
    with pytest.raises(SetupError, match='lacks 16 of 32 views of images'):
        build(distilled(resnet(), cached(str(tmp_path / 'cache'))))


def test_classes_are_mapped_when_read(folder: Path, tmp_path: Path) -> None:
    teacher = timm_teacher(folder, class_map=[3, 1, 2, 0])
    cache = make_cache(tmp_path / 'cache', teacher, dtype='float32')
    live = _losses(distilled(resnet(), teacher, FNKD), tmp_path / 'live', **VIEWS)
    mapped = _losses(distilled(resnet(), cached(cache, class_map=[3, 1, 2, 0]), FNKD), tmp_path / 'mapped')
    np.testing.assert_allclose(mapped, live, rtol=1e-5)
    other = _losses(distilled(resnet(), cached(cache), FNKD), tmp_path / 'other')
    assert not np.allclose(other, live, rtol=1e-3)


def test_names_of_classes_are_kept(folder: Path, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / 'cache', timm_teacher(folder, classes=['c1', 'c0', 'c2', 'c3']))
    student = distilled(resnet(), cached(cache)) | dict(classes=['c0', 'c1', 'c2', 'c3'])
    with pytest.raises(SetupError, match=r"not the student's, in their order \(0: 'c0', not 'c1'"):
        build(student)
    build(distilled(resnet(), cached(cache, class_map='by-name')) | dict(classes=['c0', 'c1', 'c2', 'c3']))


def test_caches_make_an_ensemble(folder: Path, tmp_path: Path) -> None:
    teachers = [timm_teacher(folder), timm_teacher(folder, 'test_vit', img_size=16)]
    caches = [make_cache(tmp_path / str(i), teacher, dtype='float32') for i, teacher in enumerate(teachers)]

    def ensemble(members: list) -> dict:
        return distilled(resnet(), dict(type='EnsembleTeacher', teachers=members, weights=[1, 2]), FNKD)

    live = _losses(ensemble(teachers), tmp_path / 'live', **VIEWS)
    replayed = _losses(ensemble([cached(cache) for cache in caches]), tmp_path / 'replayed')
    np.testing.assert_allclose(replayed, live, rtol=1e-5)
    mixed = _losses(ensemble([cached(caches[0]), teachers[1]]), tmp_path / 'mixed')
    np.testing.assert_allclose(mixed, live, rtol=1e-5)
    other = make_cache(tmp_path / 'other', teachers[1], views=1)
    with pytest.raises(SetupError, match=r'views: Replay\(seed=0, views=1, .*Replay\(seed=0, views=2, '):
        build(ensemble([cached(caches[0]), cached(other)]))


@pytest.mark.parametrize('loss', [dict(type='FNKDLoss'), dict(type='KDLoss', temperature=3.0)])
def test_the_top_k_with_all_logits_but_one_trains_like_all(loss: dict, folder: Path, tmp_path: Path) -> None:
    # A tail of one class has no variance, so that nothing is lost.
    teacher = timm_teacher(folder)
    cache = make_cache(tmp_path / 'cache', teacher, dtype='float32', top_k=3)
    weighted = dict(wrong_teacher_weight=0.5)
    live = _losses(distilled(resnet(), teacher, loss, **weighted), tmp_path / 'live', **VIEWS)
    sparse = _losses(distilled(resnet(), cached(cache, verify=3, live=teacher), loss, **weighted), tmp_path / 'sparse')
    np.testing.assert_allclose(sparse, live, rtol=1e-4)


def test_what_needs_all_logits_is_refused(folder: Path, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / 'cache', timm_teacher(folder), top_k=2)
    for loss in ('DISTLoss', 'DKDLoss', 'LSKDLoss', 'NormKDLoss'):
        with pytest.raises(SetupError, match=f'{loss} needs all logits, but .* keeps the 2 largest'):
            build(distilled(resnet(), cached(cache), dict(type=loss)))
    with pytest.raises(SetupError, match='keeps the 2 largest of 4 logits'):
        build(distilled(resnet(), cached(cache, class_map=[3, 2, 1, 0])))
    with pytest.raises(SetupError, match='largest logits'):
        build(distilled(resnet(), dict(type='EnsembleTeacher', teachers=[cached(cache)])))
    with pytest.raises(SetupError, match='top_k=4 is not in 1 to 3'):
        make_cache(tmp_path / 'other', timm_teacher(folder), top_k=4)


def test_a_teacher_without_a_feature_norm_teaches_kd(tmp_path: Path) -> None:
    teacher = dict(type='CallableTeacher', fn='tests.test_cache.test_cached_teacher.brightness')
    teacher |= dict(mean=[0, 0, 0], std=[255, 255, 255])
    cache = make_cache(tmp_path / 'cache', teacher, dtype='float32')
    live = _losses(distilled(resnet(), teacher), tmp_path / 'live', **VIEWS)
    np.testing.assert_allclose(_losses(distilled(resnet(), cached(cache)), tmp_path / 'cached'), live, rtol=1e-5)
    with pytest.raises(SetupError, match='no single last affine layer'):
        build(distilled(resnet(), cached(cache), FNKD))


def brightness(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images.mean((2, 3)), images.amax((1, 2, 3))[:, None]], dim=1)


def test_files_are_data(folder: Path, tmp_path: Path) -> None:
    """The teacher's config in a cache is neither imported nor built."""
    teacher = timm_teacher(folder)
    good = make_cache(tmp_path / 'cache', teacher)
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\n')
    evil = dict(type='MMPretrainTeacher', config=str(tmp_path / 'evil.py'))
    entry = dict(Store(good).manifest['teacher'], config=evil)
    cache = with_manifest(good, tmp_path / 'evil', teacher=entry)
    run(distilled(resnet(), cached(cache, verify=2, live=teacher)), tmp_path / 'work')
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(SetupError, match=r'verify=2 needs the live teacher; give its config, live=dict\(type='):
        build(distilled(resnet(), cached(cache, verify=2)))


def test_rows_are_compared_with_the_live_teacher(folder: Path, tmp_path: Path) -> None:
    checkpoint = timm_checkpoint(tmp_path)
    cache = make_cache(tmp_path / 'cache', timm_teacher(tmp_path))
    model = distilled(resnet(), cached(cache, verify=5, live=timm_teacher(tmp_path, class_map=[3, 2, 1, 0])))
    compared = run(model, tmp_path / 'compared').model
    assert_same_weights(
        compared.state_dict(), run(distilled(resnet(), cached(cache)), tmp_path / 'not').model.state_dict()
    )
    several = cached(cache, verify=5, live=dict(type='EnsembleTeacher', teachers=[timm_teacher(tmp_path)]))
    with pytest.raises(SetupError, match='verify: EnsembleTeacher is not a teacher that can be cached'):
        run(distilled(resnet(), several), tmp_path / 'several')
    spoil(tmp_path / 'cache', view=1)
    with pytest.raises(SetupError, match='verify: logits differ by up to'):
        run(model, tmp_path / 'spoilt')
    checkpoint.write_bytes(timm_checkpoint(tmp_path, seed=8).read_bytes())
    with pytest.raises(SetupError, match=r'verify: the weights of .* differ'):
        run(model, tmp_path / 'other')
    checkpoint.unlink()
    with pytest.raises(SetupError, match='does not exist'):
        run(model, tmp_path / 'gone')


def _stamped(folder: Path) -> Any:
    from fnkd_plugin.mm.replay.seeded_dataset import seed_samples
    from tests.helpers import RandomImages

    dataset = RandomImages(pipeline=RANDOM_PIPELINE)
    seed_samples(dataset, Replay(0, 2).data_seed, stamps=True)
    return dataset
