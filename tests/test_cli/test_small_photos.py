"""Large photos are copied once, small enough to be decoded quickly and large enough for every crop."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fnkd_plugin.cli.bundle import Bundle
from fnkd_plugin.cli.photos import Photos, read_photos
from fnkd_plugin.cli.small_photos import make_copies, small_photos
from tests.test_cli.photos import folder, photo

SIZE = 32


def copied(root: Path, out: Path) -> Photos:
    small, *copies = small_photos(read_photos(root), out, SIZE)
    make_copies(*copies, SIZE)
    return small


def halves(path: Path, width: int, height: int, **options: object) -> Path:
    """A black upper and a white lower half."""
    image = Image.new('RGB', (width, height))
    image.paste((255, 255, 255), (0, height // 2, width, height))
    image.save(path, **options)
    return path


def test_large_photos_are_copied_at_twice_the_image_size_and_small_ones_are_left(tmp_path: Path) -> None:
    root = folder(tmp_path / 'photos')
    large = {
        'train/blue/wide.jpg': (600, 300),
        'train/blue/tall.png': (130, 257),
        'train/green/huge.webp': (1024, 2048),
    }
    for name, size in large.items():
        halves(root / name, *size)
    halves(root / 'train/blue/edge.png', 128, 200)  # 4 times the size is not more than 4 times
    photos = read_photos(root)
    small = copied(root, tmp_path / 'out')
    assert [label for _, label in small.train] == [label for _, label in photos.train]
    pairs = zip(photos.train + photos.val, small.train + small.val, strict=True)
    changed = {a: Path(b) for (a, _), (b, _) in pairs if a != b}
    assert set(changed) == set(large)
    for name, path in changed.items():
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        assert path.is_absolute() and min(height, width) == 2 * SIZE
        assert width / height == pytest.approx(large[name][0] / large[name][1], rel=0.01)
        assert image[: height // 2 - 2].max() < 10 and image[height // 2 + 2 :].min() > 245
    assert not list((tmp_path / 'out').rglob('*.partial'))


def test_copies_are_averages_and_not_samples(tmp_path: Path) -> None:
    """Lines of one pixel become grey; what takes every eighth pixel makes stripes or one colour of them."""
    root = folder(tmp_path / 'photos')
    lines = np.zeros((512, 512, 3), np.uint8)
    lines[:, ::2] = 255
    Image.fromarray(lines).save(root / 'train' / 'blue' / 'lines.png')
    small = copied(root, tmp_path / 'out')
    (path,) = (path for path, _ in small.train if path.startswith('/'))
    found = cv2.imread(path)
    assert abs(found.mean() - 127.5) < 3 and found.std() < 6


def test_a_copy_is_upright(tmp_path: Path) -> None:
    root = folder(tmp_path / 'photos')
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    halves(root / 'train' / 'blue' / 'turned.jpg', 400, 200, exif=exif)
    small = copied(root, tmp_path / 'out')
    (path,) = (path for path, _ in small.train if path.startswith('/'))
    found = cv2.imread(path)
    assert found.shape[:2] == (4 * SIZE, 2 * SIZE)
    assert found[:, : SIZE - 4].min() > 245 and found[:, SIZE + 4 :].max() < 10
    assert not Image.open(path).getexif()


def test_copies_are_made_once_and_again_for_photos_that_changed(tmp_path: Path) -> None:
    root = folder(tmp_path / 'photos')
    for name in 'ab':
        photo(root / 'train' / 'blue' / f'{name}.png', (10, 20, 30), 0, (300, 200))
    copied(root, tmp_path / 'out')
    copies = sorted((tmp_path / 'out').rglob('*.jpg'))
    before = [copy.read_bytes() for copy in copies]
    for copy in copies:
        os.utime(copy, (1, 1))
    os.utime(root / 'train' / 'blue' / 'a.png', (0, 0))
    photo(root / 'train' / 'blue' / 'b.png', (200, 20, 30), 1, (300, 200))
    copied(root, tmp_path / 'out')
    assert copies[0].stat().st_mtime == 1
    assert copies[1].stat().st_mtime > 1 and copies[1].read_bytes() != before[1]


def test_a_validation_photo_and_its_copy_are_the_same_to_the_student(tmp_path: Path) -> None:
    """So that the accuracy of training is that of ``fnkd predict`` on the photos themselves."""
    root = folder(tmp_path / 'photos')
    path = photo(root / 'val' / 'blue' / 'large.jpg', (90, 40, 160), 0, (301, 457))
    small = copied(root, tmp_path / 'out')
    (copy,) = (Path(path) for path, _ in small.val if path.startswith('/'))
    bundle = Bundle('test_resnet', ['a', 'b'], SIZE, [0.5] * 3, [0.25] * 3)
    assert copy.suffix == '.png' and Image.open(copy).size[0] < 60
    assert torch.equal(bundle.pixels(copy), bundle.pixels(path))
