"""Fingerprints: equal for equal caches, with a message for each difference."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from PIL import Image
from torch import nn

from fnkd_plugin.cache.fingerprint import describe_data, describe_weights, differences, plain
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay.seeded_dataset import seed_samples
from tests.helpers import RandomImages
from tests.test_mm.test_hooks.runs import RANDOM_PIPELINE

pytestmark = pytest.mark.upstream


def _data(**options: Any) -> RandomImages:
    return RandomImages(**{'pipeline': RANDOM_PIPELINE, **options})


def test_the_same_data_are_described_alike() -> None:
    seeded = _data()
    seed_samples(seeded, 3, stamps=True)
    assert describe_data(seeded) == describe_data(_data()) == describe_data(_data(serialize_data=False))
    twice = describe_data(RepeatDataset(_data(), 2))
    assert twice['dataset'] == 'RepeatDataset(RandomImages)' and twice['samples'] == 32


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (lambda: _data(seed=1), r'^data\.annotations: '),
        (lambda: _data(indices=8), r'^data\.samples: 16 in the cache, 8 now'),
        (
            lambda: ConcatDataset([_data()]),
            r"^data\.dataset: 'RandomImages' in the cache, 'ConcatDataset\(RandomImages\)' now",
        ),
        (
            lambda: _data(pipeline=[RANDOM_PIPELINE[0], dict(RANDOM_PIPELINE[1], prob=0.4), RANDOM_PIPELINE[2]]),
            r"^data\.pipeline\[1\]: 'RandomFlip\(prob=0\.5.* in the cache, 'RandomFlip\(prob=0\.4",
        ),
        (lambda: _data(pipeline=RANDOM_PIPELINE[:2]), r'^data\.pipeline\[2\]: .PackInputs.* in the cache, None now'),
    ],
)
def test_other_data_differ(other: Any, message: str) -> None:
    found = differences(describe_data(_data()), describe_data(other()), 'data')
    assert any(re.search(message, one) for one in found), found


def test_a_moved_folder_is_the_same_and_another_label_is_not(tmp_path: Path) -> None:
    for name in ('a', 'b'):
        (tmp_path / 'here' / 'train' / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'here' / 'train' / name / 'x.png')
    shutil.copytree(tmp_path / 'here', tmp_path / 'there' / 'on')

    def described(root: Path) -> dict:
        steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
        return describe_data(CustomDataset(data_root=str(root), data_prefix='train', pipeline=steps))

    assert described(tmp_path / 'here') == described(tmp_path / 'there' / 'on')
    (tmp_path / 'here' / 'train' / 'b' / 'x.png').rename(tmp_path / 'here' / 'train' / 'a' / 'y.png')
    [different] = differences(described(tmp_path / 'there' / 'on'), described(tmp_path / 'here'))
    assert different.startswith('annotations: ')


def test_weights_are_known_by_every_bit() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).bfloat16()
    before = describe_weights(net)
    assert before == describe_weights(net)
    net[1].num_batches_tracked += 1
    counted = describe_weights(net)
    net[0].weight.data.view(torch.int16)[1, 1] ^= 1
    assert len({before, counted, describe_weights(net)}) == 3


def test_configs_become_plain_data() -> None:
    node = dict(type=nn.Linear, sizes=(1, 2), path=Path('a'), nested=[dict(x=None, y=True)])
    assert plain(node) == dict(
        type='torch.nn.modules.linear.Linear', sizes=[1, 2], path='a', nested=[dict(x=None, y=True)]
    )


def test_functions_are_known_by_name_not_by_address() -> None:
    assert plain(dict(fn=lambda: 0)) == plain(dict(fn=lambda: 0))


def test_no_difference_between_equals_and_the_first_of_a_list() -> None:
    assert differences(dict(a=[1, 2], b=None), dict(a=[1, 2], b=None)) == []
    assert differences(dict(a=[1, 2, 3]), dict(a=[1, 5])) == ['a[1]: 2 in the cache, 5 now']
    assert differences(dict(a=dict(b='x')), dict(a=dict(c=1))) == [
        "a.b: 'x' in the cache, None now",
        'a.c: None in the cache, 1 now',
    ]


def test_more_batches_than_images_are_refused() -> None:
    options = dict(batch_size=8, num_workers=0, num_batch_per_epoch=3, sampler=dict(type='DefaultSampler'))
    dataset = Runner.build_dataloader(
        dict(dataset=dict(type='RandomImages', pipeline=RANDOM_PIPELINE), **options)
    ).dataset
    with pytest.raises(SetupError, match=r'num_batch_per_epoch.* 24 images.* 16'):
        describe_data(dataset)
