import numpy as np
import pytest

pytest.importorskip('sklearn')

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.datasets import Digits


def _scans(**kwargs) -> list[tuple[bytes, int]]:
    dataset = Digits(**kwargs)
    return [(dataset[i]['img'].tobytes(), dataset[i]['gt_label']) for i in range(len(dataset))]


def test_splits_share_no_scan_and_hold_all() -> None:
    splits = [_scans(split=split) for split in ('train', 'val', 'test')]
    assert [len(split) for split in splits] == [714, 360, 723]
    # Equal pixels would be a scan twice; scikit-learn's scans are all different.
    assert len({image for split in splits for image, _ in split}) == 1797


def test_images_are_grey_bytes() -> None:
    sample = Digits(split='train', per_class=1)[0]
    assert sample['img'].shape == (8, 8, 1)
    assert sample['img'].dtype == np.uint8


def test_per_class_keeps_the_same_few() -> None:
    few, all_of_them = _scans(split='train', per_class=3), _scans(split='train')
    assert [sum(label == digit for _, label in few) for digit in range(10)] == [3] * 10
    assert set(few) <= set(all_of_them)
    assert few == _scans(split='train', per_class=3)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(SetupError, match=r"'validation'.*'train', 'val', 'test'"):
        Digits(split='validation')
