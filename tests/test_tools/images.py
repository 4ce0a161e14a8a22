"""A data set of random images that needs MMPretrain alone."""

from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS


@DATASETS.register_module(force=True)
class NoiseImages(BaseDataset):
    """``count`` random images of 16 pixels and 4 classes."""

    def __init__(self, count: int, **kwargs: Any) -> None:
        self.count = count
        super().__init__(ann_file='', serialize_data=False, metainfo=dict(classes=['a', 'b', 'c', 'd']), **kwargs)

    def load_data_list(self) -> list[dict]:
        images = np.random.RandomState(0).randint(0, 256, (self.count, 16, 16, 3)).astype(np.uint8)
        return [dict(img=image, gt_label=i % 4) for i, image in enumerate(images)]
