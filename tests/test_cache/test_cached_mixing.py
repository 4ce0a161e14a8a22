"""Students of a cache see the very mixtures (Mixup, CutMix) that its teacher saw, or nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmpretrain.registry import HOOKS

from fnkd_plugin.cache import cached_teacher
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay import fixed_batches
from tests.helpers import assert_same_weights, build, distilled, resnet, timm_teacher
from tests.test_cache.caches import cached, make_cache, spoil
from tests.test_mm.test_hooks.runs import RANDOM_PIPELINE, assert_resumes_exactly, loader, run
from tests.test_mm.test_replay.test_batch_augments import CUTMIX, KINDS, MIXUP

FNKD = dict(type='FNKDLoss', tau=5.0)
COUNT, BATCH = 10, 4
seen_by_teacher: list[bytes] = []


def _student(**train_cfg: Any) -> dict:
    return resnet(train_cfg=train_cfg or dict(augments=[MIXUP, CUTMIX]))


def _data(**options: Any) -> dict:
    return loader(dict(type='RandomImages', count=COUNT, pipeline=RANDOM_PIPELINE), **options)


def _options(epochs: int = 4, **data: Any) -> dict:
    return dict(train_dataloader=_data(**data), train_cfg=dict(by_epoch=True, max_epochs=epochs))


def remember(images: torch.Tensor) -> torch.Tensor:
    """Logits of four classes; what was seen is kept."""
    seen_by_teacher.extend(image.numpy().tobytes() for image in images)
    return images.mean((2, 3)) @ torch.linspace(-1, 1, 12).view(3, 4)


@HOOKS.register_module(force=True)
class Pixels(Hook):
    """Keeps each image that the student's backbone gets, and the soft losses."""

    def before_train(self, runner: Any) -> None:
        self.images: list[list[bytes]] = []
        self.losses: list[float] = []
        runner.model.backbone.register_forward_pre_hook(self._look)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(float(outputs['loss_soft'].detach()) if 'loss_soft' in outputs else 0.0)

    def _look(self, module: Any, inputs: tuple) -> None:
        self.images.append([image.detach().numpy().tobytes() for image in inputs[0]])


@HOOKS.register_module(force=True)
class Halves(Hook):
    """Cuts every batch in half."""

    priority = 'HIGH'

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        data_batch['inputs'], data_batch['data_samples'] = data_batch['inputs'][:2], data_batch['data_samples'][:2]


@HOOKS.register_module(force=True)
class Unmix(Hook):
    """Takes the batch augmentations out of the second epoch."""

    def before_train_epoch(self, runner: Any) -> None:
        if runner.epoch == 1:
            runner.model.data_preprocessor.batch_augments = None


def _seen(model: dict, folder: Path, **options: Any) -> Pixels:
    runner = run(model, folder, custom_hooks=[dict(type='Pixels')], **{**_options(), **options})
    return next(hook for hook in runner.hooks if isinstance(hook, Pixels))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of 10 mixed images by a ``test_resnet``, read by many tests."""
    init_default_scope('mmpretrain')
    path = tmp_path_factory.mktemp('mixed')
    make_cache(path / 'cache', timm_teacher(path), student=_student(), dtype='float32', train_dataloader=_data())
    return path


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.upstream
def test_training_sees_what_the_teacher_saw(kind: str, tmp_path: Path) -> None:
    teacher = dict(type='CallableTeacher', fn=f'{__name__}.remember', mean=[0.0] * 3, std=[255.0] * 3)
    pixels = dict(type='ClsDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3, to_rgb=True, num_classes=4)
    student = resnet(train_cfg=KINDS[kind], data_preprocessor=pixels)
    seen_by_teacher.clear()
    cache = make_cache(tmp_path / 'cache', teacher, student=student, train_dataloader=_data())
    compared = seen_by_teacher[-2 * COUNT :]
    found = _seen(distilled(student, cached(cache)), tmp_path / 'run').images
    # Bit for bit, in the order of the batches, and again in epochs 3 and 4.
    assert [image for batch in found for image in batch] == 2 * compared
    assert [len(batch) for batch in found[:3]] == [4, 4, 2]
    assert len(set(compared)) == 2 * COUNT


@pytest.mark.parametrize('workers', [dict(num_workers=2, persistent_workers=True), dict(num_workers=1)])
def test_equals_the_live_teacher_on_the_same_mixtures(workers: dict, folder: Path, tmp_path: Path) -> None:
    replay = dict(
        default_hooks=dict(reproducible=dict(type='ReproducibleHook', replay=dict(seed=0, views=2, batch_size=4)))
    )
    live = _seen(distilled(_student(), timm_teacher(folder), FNKD), tmp_path / 'live', **replay)
    cache = cached(str(folder / 'cache'))
    replayed = _seen(distilled(_student(), cache, FNKD), tmp_path / 'cached', **_options(**workers))
    assert replayed.images == live.images
    np.testing.assert_allclose(replayed.losses[:6], live.losses[:6], rtol=1e-4)
    plain = _seen(_student(), tmp_path / 'plain', **replay)
    assert plain.images == live.images


def test_seeds_of_the_run_change_neither_batches_nor_mixtures_but_the_rest(folder: Path, tmp_path: Path) -> None:
    model = distilled(_student(), cached(str(folder / 'cache')), FNKD)
    one, other = (_seen(model, tmp_path / str(seed), randomness=dict(seed=seed)) for seed in (1, 2))
    assert one.images == other.images
    assert one.losses != other.losses


@pytest.mark.upstream
def test_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    model = distilled(_student(), cached(str(folder / 'cache')), dict(type='FNKDLoss'))
    assert_resumes_exactly(model, tmp_path, cut_off=7, **_options(3, num_workers=1))


def test_incomplete_batches_may_be_dropped(folder: Path, tmp_path: Path) -> None:
    model = distilled(_student(), cached(str(folder / 'cache')))
    whole = _seen(model, tmp_path / 'whole').images
    dropped = _seen(model, tmp_path / 'dropped', **_options(drop_last=True)).images
    assert dropped == [batch for batch in whole if len(batch) == BATCH]


@pytest.mark.parametrize(
    ('train_cfg', 'message'),
    [
        (
            dict(augments=[MIXUP, dict(CUTMIX, alpha=0.5)]),
            r'mixing\.augments\[1\]: .*alpha=1\.0.* cache, .*alpha=0\.5',
        ),
        (dict(augments=[MIXUP, CUTMIX], probs=[0.9, 0.1]), r'mixing\.probabilities: None in the cache'),
    ],
)
def test_other_mixtures_are_refused_before_the_first_step(
    train_cfg: dict, message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=message):
        run(distilled(_student(**train_cfg), cached(str(folder / 'cache'))), tmp_path, **_options())


def test_a_cache_of_mixed_images_and_one_of_plain_ones_are_not_interchangeable(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="teacher saw mixed images, but the student's train_cfg"):
        run(distilled(resnet(), cached(str(folder / 'cache'))), tmp_path / 'a', **_options())
    plain = make_cache(tmp_path / 'plain', timm_teacher(folder), train_dataloader=_data())
    with pytest.raises(SetupError, match="Mixup, CutMix mixes images of a batch, but the cache's teacher saw them"):
        run(distilled(_student(), cached(plain)), tmp_path / 'b', **_options())
    both = dict(type='EnsembleTeacher', teachers=[cached(plain), cached(str(folder / 'cache'))])
    with pytest.raises(SetupError, match=r'views: .*batch_size=4.*batch_size=None'):
        build(distilled(_student(), both))


def test_other_batches_are_refused(folder: Path, tmp_path: Path) -> None:
    model = distilled(_student(), cached(str(folder / 'cache')))
    with pytest.raises(SetupError, match='in batches of 4, but the batches of this run have 5'):
        run(model, tmp_path, **_options(batch_size=5))
    infinite = _options(sampler=dict(type='InfiniteSampler'))
    with pytest.raises(SetupError, match='InfiniteSampler makes batches of its own'):
        run(model, tmp_path, **infinite)
    with pytest.raises(SetupError, match='RepeatAugSampler makes batches of its own'):
        data = _data(sampler=dict(type='RepeatAugSampler'))
        make_cache(tmp_path / 'cache', timm_teacher(folder), student=_student(), train_dataloader=data)


def test_another_order_stops_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of NumPy might have."""
    order = fixed_batches.order_of
    monkeypatch.setattr(fixed_batches, 'order_of', lambda *key: order(*key)[::-1])
    with pytest.raises(RuntimeError, match='of 4 images are not those that the teacher saw'):
        run(distilled(_student(), cached(str(folder / 'cache'))), tmp_path, **_options())


def test_a_part_of_a_batch_stops_training(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match='the 2 images of this batch are not the 4 of batch 0 of view 0'):
        run(
            distilled(_student(), cached(str(folder / 'cache'))),
            tmp_path,
            custom_hooks=[dict(type='Halves')],
            **_options(),
        )


@pytest.mark.parametrize('augments', [None, dict(augments=dict(type='CutMix', alpha=1.0))])
def test_what_is_mixed_must_not_be_switched(augments: Any, folder: Path, tmp_path: Path) -> None:
    """Off neither: it may, where the images of a cache are not mixed."""
    hooks = [dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=2, batch_augments=augments)])]
    model = distilled(_student(), cached(str(folder / 'cache')))
    with pytest.raises(SetupError, match='SwitchRecipeHook sets other batch_augments at epoch 2'):
        run(model, tmp_path / 'cached', custom_hooks=hooks, **_options())
    replayed = dict(reproducible=dict(type='ReproducibleHook', replay=dict(seed=0, views=2, batch_size=BATCH)))
    with pytest.raises(SetupError, match='SwitchRecipeHook sets other batch_augments at epoch 2'):
        run(_student(), tmp_path / 'plain', custom_hooks=hooks, default_hooks=replayed, **_options())


def test_a_hook_that_unmixes_is_found(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r'have not been mixed .* a hook has changed .* batch_augments'):
        run(
            distilled(_student(), cached(str(folder / 'cache'))),
            tmp_path,
            custom_hooks=[dict(type='Unmix')],
            **_options(),
        )


@pytest.mark.slow
def test_compiles_to_the_same(folder: Path, tmp_path: Path) -> None:
    """Mixing itself is not compiled."""
    model = distilled(_student(), cached(str(folder / 'cache')), FNKD)
    compiled = _seen(model, tmp_path / 'compiled', compile=dict(backend='aot_eager'))
    eager = _seen(model, tmp_path / 'eager')
    assert compiled.images == eager.images
    np.testing.assert_allclose(compiled.losses[:6], eager.losses[:6], rtol=1e-4)


@pytest.mark.upstream
def test_a_loop_by_iterations_draws_the_same(folder: Path, tmp_path: Path) -> None:
    model = distilled(_student(), cached(str(folder / 'cache')))
    loop = dict(train_cfg=dict(by_epoch=False, max_iters=12, val_interval=100))
    assert _seen(model, tmp_path / 'iterations', **loop).images == _seen(model, tmp_path / 'epochs').images


def test_top_k_logits_of_mixed_images_train_like_all(folder: Path, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / 'top', timm_teacher(folder), student=_student(), train_dataloader=_data(), top_k=3)
    top = _seen(distilled(_student(), cached(cache), FNKD), tmp_path / 'top_3')
    whole = _seen(distilled(_student(), cached(str(folder / 'cache')), FNKD), tmp_path / 'all')
    assert top.images == whole.images
    # Three of four, and the moments of the one that is left.
    np.testing.assert_allclose(top.losses[:3], whole.losses[:3], rtol=2e-3)


def test_rows_are_compared_with_the_live_teacher(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(
        tmp_path / 'cache', timm_teacher(folder), student=_student(), train_dataloader=_data(), dtype='float32'
    )
    model = distilled(_student(), cached(cache, verify=9, live=timm_teacher(folder)))
    compared, predict_rows = [], cached_teacher.predict_rows

    def count(*args: Any) -> Any:
        compared.append(len(args[2]['inputs']))
        return predict_rows(*args)

    monkeypatch.setattr(cached_teacher, 'predict_rows', count)
    after = run(model, tmp_path / 'compared', **_options()).model
    assert compared == [4, 2, 2]  # as many batches as hold nine, from all over the cache, the short ones too
    plain = run(distilled(_student(), cached(cache)), tmp_path / 'not', **_options()).model
    assert_same_weights(after.state_dict(), plain.state_dict())
    spoil(tmp_path / 'cache', view=1)
    with pytest.raises(SetupError, match='verify: logits differ by up to'):
        run(model, tmp_path / 'spoilt', **_options())
