"""The same pixels under another normalisation and channel order."""

import pickle

import numpy as np
import pytest
import torch
from mmpretrain.models.utils import ClsDataPreprocessor

from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers.pixels import PixelFormat, converter, format_of_preprocessor
from tests.helpers import MEAN, STD

pytestmark = pytest.mark.upstream

RGB = PixelFormat.of(MEAN, STD, 'rgb')
HALF = PixelFormat.of([127.5, 120.0, 110.0], [64.0, 32.0, 128.0], 'rgb')


def _normalised(raw: torch.Tensor, pixels: PixelFormat) -> torch.Tensor:
    """Raw RGB images in a format."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (pixels.mean, pixels.std))
    return ((raw.flip(1) if pixels.channel_order == 'bgr' else raw) - mean) / std


@pytest.mark.parametrize('source', [RGB, HALF, PixelFormat.of(MEAN, STD, 'bgr')])
@pytest.mark.parametrize('target', [RGB, HALF, PixelFormat.of(HALF.mean, HALF.std, 'bgr')])
def test_conversion_is_undoing_reordering_and_redoing(source: PixelFormat, target: PixelFormat) -> None:
    raw = torch.rand(2, 3, 5, 5) * 255
    convert = converter(source, target)
    torch.testing.assert_close(convert(_normalised(raw, source)), _normalised(raw, target), rtol=0, atol=2e-5)
    again = pickle.loads(pickle.dumps(convert))
    assert torch.equal(again(_normalised(raw, source)), convert(_normalised(raw, source)))


def test_there_and_back_is_the_identity() -> None:
    images = torch.randn(2, 3, 5, 5)
    back = converter(HALF, RGB)(converter(RGB, HALF)(images))
    torch.testing.assert_close(back, images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'pixels', [RGB, PixelFormat(), PixelFormat.of(MEAN, STD, None), PixelFormat.of([33.0], [78.0])]
)
def test_equal_formats_pass_through_untouched(pixels: PixelFormat) -> None:
    images = torch.randn(2, 3, 5, 5)
    assert converter(pixels, pixels)(images) is images


def test_another_order_alone_only_flips() -> None:
    images = torch.randn(2, 3, 5, 5)
    bgr = PixelFormat.of(MEAN[::-1], STD[::-1], 'bgr')
    assert torch.equal(converter(bgr, RGB)(images), images.flip(1))


def test_grey_images_have_no_order() -> None:
    grey, other = PixelFormat.of([0.0], [255.0]), PixelFormat.of([51.0], [51.0], 'rgb')
    torch.testing.assert_close(converter(grey, other)(torch.ones(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 4.0))


@pytest.mark.parametrize(
    ('source', 'target', 'message'),
    [
        (PixelFormat(channel_order='rgb'), RGB, "the student's mean and std are unknown"),
        (RGB, PixelFormat(channel_order='rgb'), "the teacher's mean and std are unknown"),
        (PixelFormat.of(MEAN, STD), RGB, "the student's channel order is unknown"),
        (RGB, PixelFormat.of(MEAN, STD), "the teacher's channel order is unknown"),
        (PixelFormat.of([1.0], [1.0]), RGB, "1 channels, the teacher's 3"),
    ],
)
def test_unknown_formats_raise(source: PixelFormat, target: PixelFormat, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        converter(source, target)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mean=(1.0,)), 'given together'),
        (dict(mean=(1.0, 2.0), std=(1.0,)), 'of one length'),
        (dict(mean=(1.0,), std=(0.0,)), 'std > 0'),
        (dict(mean=(1.0,), std=(float('inf'),)), 'finite'),
        (dict(mean=(float('nan'),), std=(1.0,)), 'finite'),
        (dict(channel_order='RGB'), "channel_order must be 'rgb' or 'bgr', but is 'RGB'"),
    ],
)
def test_invalid_formats_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        PixelFormat(**options)
    with pytest.raises(SetupError, match=f'Me: .*{message}'):
        PixelFormat().restated('Me', **options)


def test_restated_keeps_what_is_not_given() -> None:
    bgr = PixelFormat.of(MEAN, STD, None).restated('Me', channel_order='bgr')
    assert (list(bgr.mean), list(bgr.std), bgr.channel_order) == (MEAN, STD, 'bgr')
    assert RGB.restated('Me') == RGB


def test_restated_takes_arrays() -> None:
    assert PixelFormat().restated('Me', np.array(MEAN), np.array(STD), 'rgb') == RGB


def test_numbers_on_the_scale_of_0_to_1_are_refused_and_can_be_restated() -> None:
    with pytest.raises(SetupError, match=r'Me: .*0 to 255'):
        PixelFormat().restated('Me', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    # A preprocessor of images that are loaded on that scale has such numbers rightly; its owner can say so.
    small = format_of_preprocessor(ClsDataPreprocessor(mean=[0.5] * 3, std=[0.25] * 3, to_rgb=True))
    with pytest.raises(SetupError, match=r'Me: .*0 to 255'):
        small.restated('Me')
    assert small.restated('Me', MEAN, STD) == RGB
    assert PixelFormat().restated('Me', [0.0], [1.0]).std == (1.0,)


@pytest.mark.parametrize(('factor', 'bits'), [(257, '16'), (16, '12'), (4, '10'), (1 / 255, '1 (0 to 1)')])
def test_other_scales_than_that_of_8_bit_are_refused_and_can_be_restated(factor: float, bits: str) -> None:
    scaled = [[factor * x for x in values] for values in (MEAN, STD)]
    student = format_of_preprocessor(ClsDataPreprocessor(*scaled, to_rgb=True))
    with pytest.raises(SetupError, match=r'Me: .*0 to 255 scale'):
        student.restated('Me')
    assert student.restated('Me', MEAN, STD) == RGB


@pytest.mark.parametrize(('mean', 'std'), [(0, 255), (0, 1), (127.5, 127.5), (128, 256), (127.5, 10.2), (-0.0, 256)])
def test_scales_in_use_are_accepted(mean: float, std: float) -> None:
    assert PixelFormat().restated('Me', [mean] * 3, [std] * 3, 'rgb').std == (std,) * 3


@pytest.mark.parametrize('options', [dict(mean=127.5, std=127.5), dict(mean=['a'], std=['b']), dict(mean='123', std=1)])
def test_what_is_not_one_number_per_channel_is_refused(options: dict) -> None:
    with pytest.raises(SetupError, match=r'Me: .*one number per channel'):
        PixelFormat().restated('Me', **options)


def test_format_of_preprocessors() -> None:
    known = format_of_preprocessor(ClsDataPreprocessor(mean=MEAN, std=STD, to_rgb=True))
    assert known.channel_order == 'rgb' and list(known.mean) == pytest.approx(MEAN)
    assert format_of_preprocessor(ClsDataPreprocessor(mean=MEAN, std=STD, to_rgb=False)).channel_order is None
    assert format_of_preprocessor(ClsDataPreprocessor(to_rgb=True)) == PixelFormat(None, None, 'rgb')


def test_as_text() -> None:
    assert str(RGB) == 'mean 123.67 116.28 103.53, std 58.395 57.12 57.375, rgb'
    assert str(PixelFormat()) == 'mean and std unknown, channel order unknown'
