import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image

from fnkd_plugin.analysis.thumbnails import png_uri, thumbnails, to_pixels
from fnkd_plugin.teachers import PixelFormat
from tests.helpers import MEAN, STD
from tests.test_analysis.subjects import subject

pytestmark = pytest.mark.upstream


def _decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(',')
    assert head == 'data:image/png;base64'
    return np.array(Image.open(BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
def test_normalised_pixels_come_back(order: str) -> None:
    rgb = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    loaded = rgb if order == 'rgb' else rgb[..., ::-1].copy()
    preprocessor = ClsDataPreprocessor(mean=MEAN, std=STD, to_rgb=False)
    seen = preprocessor(dict(inputs=[torch.from_numpy(loaded).permute(2, 0, 1)]))['inputs'][0]
    assert (to_pixels(seen, PixelFormat.of(MEAN, STD, order)) == rgb).all()


def test_grey_and_unnormalised_images_can_be_looked_at() -> None:
    grey = torch.tensor([[[0.0, 255.0]]])
    assert to_pixels(grey, PixelFormat.of([0.0], [1.0], 'rgb')).tolist() == [[[0] * 3, [255] * 3]]
    stretched = to_pixels(torch.tensor([[[-1.0, 0.0, 1.0]]]).expand(3, -1, -1), PixelFormat.of())
    assert stretched[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_small_images_are_kept_bit_for_bit_and_large_ones_made_smaller() -> None:
    image = np.random.RandomState(0).randint(0, 256, (100, 60, 3)).astype(np.uint8)
    assert (_decoded(png_uri(image)) == image).all()
    assert _decoded(png_uri(np.zeros((256, 512, 3), np.uint8))).shape == (64, 128, 3)


def test_images_are_fetched_by_index(tmp_path: Path) -> None:
    found = subject(tmp_path, count=20)
    images = thumbnails(found, [17, 3, 3])
    assert sorted(images) == [3, 17]
    for index, uri in images.items():
        # RandomImages are RGB already, whatever to_rgb of the test's preprocessor turns them into.
        bgr = found.dataset.get_data_info(index)['img']
        assert (_decoded(uri) == bgr[..., ::-1]).all()
