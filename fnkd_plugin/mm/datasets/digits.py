"""The handwritten digits of scikit-learn."""

from typing import ClassVar

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from fnkd_plugin.errors import SetupError

_PARTS = ('train', 'val', 'test')


@DATASETS.register_module()
class Digits(BaseDataset):
    """1,797 scans of handwritten digits, 8x8 pixels, 16 grey levels (UCI's test set, part of scikit-learn).

    Of each class 40 % are ``'train'``, 20 % ``'val'`` and 40 % ``'test'``, by one fixed shuffle.

    Args:
        split: ``'train'``, ``'val'`` or ``'test'``.
        per_class: Number of images to keep per class; None for all.
        **kwargs: See MMPretrain's ``BaseDataset``.
    """

    METAINFO: ClassVar[dict] = {'classes': [str(digit) for digit in range(10)]}

    def __init__(self, split: str, per_class: int | None = None, **kwargs: object) -> None:
        if split not in _PARTS:
            raise SetupError(f'Digits: split {split!r} must be one of {_PARTS}.')
        self.split = split
        self.per_class = per_class
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict with ``img`` (uint8, [8, 8, 1], 0 to 240) and ``gt_label`` per image."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("Digits: needs scikit-learn; pip install 'fnkd_plugin[tools]'.") from error
        scans, labels = load_digits(return_X_y=True)
        images = (scans.reshape(-1, 8, 8, 1) * 15).astype(np.uint8)
        order = np.random.RandomState(0).permutation(len(labels))
        chosen: list[int] = []
        for digit in range(10):
            of_class = order[labels[order] == digit]
            bounds = [0, int(0.4 * len(of_class)), int(0.6 * len(of_class)), len(of_class)]
            part = _PARTS.index(self.split)
            chosen.extend(of_class[bounds[part] : bounds[part + 1]][: self.per_class])
        return [dict(img=images[i], gt_label=int(labels[i])) for i in chosen]
