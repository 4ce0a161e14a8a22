"""What a cache cannot be made of is said, and where it was found."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import init_default_scope
from mmpretrain.registry import TRANSFORMS

from fnkd_plugin.errors import SetupError
from tests.helpers import resnet, timm_teacher
from tests.test_cache.caches import cached, make_cache
from tests.test_mm.test_hooks.runs import loader

pytestmark = pytest.mark.upstream


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope('mmpretrain')


def extreme(images: torch.Tensor) -> torch.Tensor:
    """Logits of four classes; that of class 2 for the fourth image of a batch is what ``VALUE`` says."""
    logits = torch.zeros(len(images), 4)
    if len(images) > 3:
        logits[3, 2] = VALUE
    return logits


VALUE = 0.0


def _of(fn: str) -> dict:
    return dict(type='CallableTeacher', fn=f'tests.test_cache.test_build.{fn}', mean=[0] * 3, std=[1] * 3)


@pytest.mark.parametrize(
    ('value', 'said'),
    [
        (-7e4, r'is -70000, which does not fit float16 \(at most 65504\); .* another cache with --dtype float32'),
        (np.nan, 'is nan, which no cache can hold; check the weights'),
        (np.inf, 'is inf, which no cache can hold; check the weights'),
    ],
)
def test_a_logit_that_does_not_fit_is_named(
    value: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('tests.test_cache.test_build.VALUE', value)
    with pytest.raises(SetupError, match=rf'logit of class 2 for image 3 \(random_3\.png\) in view 0 {said}'):
        make_cache(tmp_path / 'cache', _of('extreme'))
    if np.isfinite(value):
        make_cache(tmp_path / 'other', _of('extreme'), dtype='float32')


@pytest.mark.parametrize('options', [dict(batch_size=1), dict(batch_size=4), dict(batch_size=4, num_workers=1)])
@pytest.mark.parametrize('collate', ['default_collate', 'pseudo_collate'])
def test_images_of_several_sizes_are_refused(options: dict, collate: str, tmp_path: Path) -> None:
    """The teacher would see them otherwise than a batch that is padded to the largest."""
    pipeline = [dict(type='RandomChoiceResize', scales=[(16, 16), (24, 24)]), dict(type='PackInputs')]
    data = loader(dict(type='RandomImages', pipeline=pipeline), collate_fn=dict(type=collate), **options)
    with pytest.raises(SetupError, match=r'view 0 is \[3, (16, 16|24, 24)\], others are \[3, (16, 16|24, 24)\]; end '):
        make_cache(tmp_path / 'cache', timm_teacher(tmp_path), train_dataloader=data)


def test_images_that_the_batch_augmentations_leave_alone_are_refused(tmp_path: Path) -> None:
    """As they do where there is no label."""
    student = resnet(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))
    data = loader(dict(type='RandomImages', pipeline=[dict(type='RemoveLabel'), dict(type='PackInputs')]))
    with pytest.raises(SetupError, match=r'have not mixed the images; do these have labels'):
        make_cache(tmp_path / 'cache', timm_teacher(tmp_path), student=student, train_dataloader=data)


@TRANSFORMS.register_module(force=True)
class RemoveLabel(BaseTransform):
    """What an unlabelled data set gives."""

    def transform(self, results: dict) -> dict:
        del results['gt_label']
        return results


def test_what_may_choose_otherwise_when_it_goes_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"execution='auto', which may choose otherwise .* name its way"):
        make_cache(tmp_path / 'cache', timm_teacher(tmp_path, execution='auto'))


def test_what_is_no_one_live_teacher_is_refused(tmp_path: Path) -> None:
    teacher = timm_teacher(tmp_path)
    one = make_cache(tmp_path / 'one', teacher)
    for other, name in ((cached(one), 'CachedTeacher'), (dict(type='EnsembleTeacher', teachers=[teacher]), 'Ensemble')):
        with pytest.raises(SetupError, match=f'{name}.* cannot be cached; give one live teacher'):
            make_cache(tmp_path / 'two', other)
