"""Building a cache: what cannot be cached is refused by name, and a build that was killed continues exactly."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import init_default_scope
from mmpretrain.registry import TRANSFORMS

from fnkd_plugin.cache import store
from fnkd_plugin.errors import SetupError
from tests.helpers import resnet, timm_teacher
from tests.test_cache.caches import cached, contents, make_cache
from tests.test_mm.test_hooks.runs import loader

pytestmark = pytest.mark.upstream


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope('mmpretrain')


def extreme(images: torch.Tensor) -> torch.Tensor:
    """Logits of four classes; that of class 2 for the fourth image of a batch is ``VALUE``."""
    logits = torch.zeros(len(images), 4)
    if len(images) > 3:
        logits[3, 2] = VALUE
    return logits


VALUE = 0.0


def _of(fn: str) -> dict:
    return dict(type='CallableTeacher', fn=f'tests.test_cache.test_build.{fn}', mean=[0] * 3, std=[1] * 3)


@pytest.mark.parametrize(('value', 'shown'), [(-7e4, '-70000'), (np.nan, 'nan'), (np.inf, 'inf')])
def test_a_logit_that_does_not_fit_is_named(
    value: float, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('tests.test_cache.test_build.VALUE', value)
    message = (
        rf'logit of class 2 for image 3 \(random_3\.png\) in view 0 is {shown}, and float16 .* 65504;.* --dtype float32'
    )
    with pytest.raises(SetupError, match=message):
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
    """As for images without labels."""
    student = resnet(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))
    data = loader(dict(type='RandomImages', pipeline=[dict(type='RemoveLabel'), dict(type='PackInputs')]))
    with pytest.raises(SetupError, match=r'have not mixed the images; check that these have labels'):
        make_cache(tmp_path / 'cache', timm_teacher(tmp_path), student=student, train_dataloader=data)


@TRANSFORMS.register_module(force=True)
class RemoveLabel(BaseTransform):
    """What an unlabelled data set gives."""

    def transform(self, results: dict) -> dict:
        del results['gt_label']
        return results


def test_what_may_choose_otherwise_when_it_goes_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"execution='auto', which may choose differently .* execution=dict"):
        make_cache(tmp_path / 'cache', timm_teacher(tmp_path, execution='auto'))


def test_only_a_single_live_teacher_can_be_cached(tmp_path: Path) -> None:
    teacher = timm_teacher(tmp_path)
    one = make_cache(tmp_path / 'one', teacher)
    for other, name in ((cached(one), 'CachedTeacher'), (dict(type='EnsembleTeacher', teachers=[teacher]), 'Ensemble')):
        with pytest.raises(SetupError, match=f'{name}.* cannot be cached; give a single live teacher'):
            make_cache(tmp_path / 'two', other)


CALLS = ('pwrite', 'fsync', 'rename')
"""The calls with which a build changes the disk, once its empty files are made, in a folder of another name."""


def _killed_at(number: int, make: Callable[[], object]) -> bool:
    """Build in a child process, which is killed in the middle of the call of this number; False if there are fewer."""
    pid = os.fork()
    if pid == 0:
        count = itertools.count(1)

        def counted(call: Callable) -> Callable:
            def run(*args: Any) -> Any:
                if next(count) < number:
                    return call(*args)
                if call is pwrite:  # half of it is written
                    call(args[0], args[1][: len(args[1]) // 2], args[2])
                return os.kill(os.getpid(), signal.SIGKILL)

            return run

        pwrite = os.pwrite
        try:
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            make()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize('step', [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_build_that_was_killed_anywhere_continues_exactly(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, 'BLOCK', 4)
    teacher = timm_teacher(tmp_path)
    make_cache(tmp_path / 'whole', teacher)
    whole, kills = contents(tmp_path / 'whole'), 0
    for number in itertools.count(1, step):
        folder = tmp_path / str(number)
        if not _killed_at(number, lambda folder=folder: make_cache(folder, teacher)):
            break
        kills += 1
        make_cache(folder, teacher)
        assert contents(folder) == whole, f'killed at call {number}'
    assert kills * step >= 32  # two views of four blocks, each written, synchronised, marked and synchronised
