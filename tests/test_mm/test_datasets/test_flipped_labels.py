import pickle

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.datasets.flipped_labels import flip_labels
from fnkd_plugin.mm.training import check_data_roots
from tests.helpers import CLASSES, RandomImages

pytestmark = pytest.mark.upstream

PIPELINE = [dict(type='PackInputs')]
GROUPS = [[1], [0], [3], []]


def _build(**options: object) -> BaseDataset:
    return DATASETS.build(dict(type='FlippedLabels', of='RandomImages', count=40, pipeline=PIPELINE, **options))


def test_as_many_labels_are_flipped_as_requested_to_all_classes_alike() -> None:
    labels = np.arange(20_000) % 5
    flipped = flip_labels(labels, 5, 0.3, seed=1)
    wrong = flipped != labels
    assert wrong.sum() == 6000
    steps = (flipped - labels)[wrong] % 5
    # Four other classes, 1500 each; the standard deviation of a count is 34.
    assert np.abs(np.bincount(steps, minlength=5)[1:] - 1500).max() < 5 * 34
    assert (labels == np.arange(20_000) % 5).all()


def test_the_same_seed_flips_the_same_labels() -> None:
    labels = np.arange(100) % 4
    first, again, other = (flip_labels(labels, 4, 0.2, seed) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()
    assert (flip_labels(labels, 4, 0.0) == labels).all()


def test_within_groups_labels_become_a_near_class_or_stay() -> None:
    labels = np.arange(400) % CLASSES
    flipped = flip_labels(labels, CLASSES, 0.5, 0, GROUPS)
    wrong = flipped != labels
    assert wrong.sum() == 150  # half of those of the three classes that have neighbours
    assert all(b in GROUPS[a] for a, b in zip(labels[wrong], flipped[wrong], strict=True))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(rate=1.0), r'rate must be a finite number >= 0 and < 1, but is 1\.0'),
        (dict(rate=-0.1), 'rate must be'),
        (dict(rate=0.1, neighbours=[[], []]), 'no label can be flipped'),
        (dict(rate=0.1, neighbours=[[0], [1]]), 'no label can be flipped'),
    ],
)
def test_what_cannot_be_flipped_is_refused(options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        flip_labels(np.array([0, 1, 0]), 2, **options)


@pytest.mark.parametrize('serialize', [True, False])
def test_the_data_set_is_itself_with_other_labels(serialize: bool) -> None:
    dataset = _build(rate=0.25, seed=2, serialize_data=serialize)
    assert type(dataset) is RandomImages
    plain = RandomImages(count=40, pipeline=PIPELINE)
    samples = [dataset.get_data_info(i) for i in range(40)]
    assert [s['clean_label'] for s in samples] == plain.get_gt_labels().tolist()
    assert sum(s['gt_label'] != s['clean_label'] for s in samples) == 10
    # What training sees: the same pixels, the flipped label.
    for i in range(40):
        ours, theirs = dataset[i], plain[i]
        assert (ours['inputs'] == theirs['inputs']).all()
        assert ours['data_samples'].gt_label.item() == samples[i]['gt_label']
    assert dataset.get_gt_labels().tolist() == [s['gt_label'] for s in samples]


def test_it_goes_to_worker_processes_and_flips_once() -> None:
    dataset = pickle.loads(pickle.dumps(_build(rate=0.25, lazy_init=True)))
    dataset.full_init()
    assert sum(dataset.get_data_info(i)['gt_label'] != i % CLASSES for i in range(40)) == 10


def test_groups_flip_within_them() -> None:
    dataset = _build(rate=0.5, groups=GROUPS)
    for i in range(40):
        sample = dataset.get_data_info(i)
        assert sample['gt_label'] in [sample['clean_label'], *GROUPS[sample['clean_label']]]
    with pytest.raises(SetupError, match='RandomImages has 4 classes, the groups are of 2'):
        _build(groups=[[1], [0]])


def test_the_inner_data_set_is_looked_for_on_disk() -> None:
    def loaders(of: str) -> Config:
        return Config(dict(train_dataloader=dict(dataset=dict(type='FlippedLabels', of=of, data_root='nowhere'))))

    check_data_roots(loaders('CIFAR10'))  # fetches itself
    with pytest.raises(SetupError, match='no folder nowhere with the data of CUB2010'):
        check_data_roots(loaders('CUB2010'))


def test_wrappers_and_multi_label_data_are_refused() -> None:
    inner = dict(type='RandomImages', pipeline=PIPELINE)
    with pytest.raises(SetupError, match='ConcatDataset is not a BaseDataset'):
        DATASETS.build(dict(type='FlippedLabels', of='ConcatDataset', datasets=[inner, inner]))

    class Several(RandomImages):
        def load_data_list(self) -> list[dict]:
            return [dict(img=s['img'], gt_label=[0, 1]) for s in super().load_data_list()]

    with pytest.raises(SetupError, match='samples of Several do not have one gt_label each'):
        DATASETS.build(dict(type='FlippedLabels', of=Several))
