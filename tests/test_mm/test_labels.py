"""The class of each image."""

import pytest
import torch
from mmpretrain.structures import DataSample

from fnkd_plugin.mm.labels import hard_labels

pytestmark = pytest.mark.upstream


def test_one_label_for_each_image() -> None:
    labels = hard_labels([DataSample().set_gt_label(i) for i in (1, 2, 2)])
    assert labels is not None and labels.tolist() == [1, 2, 2]


def test_mixed_labels_are_the_heavier_one() -> None:
    scores = ([0.9, 0.1, 0.0], [0.0, 0.6, 0.4], [0.3, 0.0, 0.7])
    labels = hard_labels([DataSample().set_gt_label(0).set_gt_score(torch.tensor(score)) for score in scores])
    assert labels is not None and labels.tolist() == [0, 1, 2]


def test_no_labels() -> None:
    assert hard_labels(None) is None and hard_labels([]) is None and hard_labels([DataSample()]) is None


def test_several_labels_an_image_are_refused() -> None:
    several = DataSample().set_gt_label([0, 3, 6]).set_gt_score(torch.tensor([1.0, 0, 0, 1, 0, 0, 1]))
    with pytest.raises(ValueError, match='an image has 3 labels'):
        hard_labels([DataSample().set_gt_label(1).set_gt_score(torch.eye(7)[1]), several])
