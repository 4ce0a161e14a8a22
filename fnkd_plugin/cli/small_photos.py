"""Downscaled copies of large photos, which are decoded faster."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from fnkd_plugin.cli.bundle import val_pipeline
from fnkd_plugin.cli.photos import Photos, quiet_pool

_LARGE, _COPY = 4, 2
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

Copies = dict[Path, Path]
"""Copies by their photos."""


def small_photos(photos: Photos, folder: Path, size: int) -> tuple[Photos, Copies, Copies]:
    """The photos with copies in place of the large ones, and the copies of training and validation photos.

    A photo is large if its shorter side is more than 4 times the image size. The copy of a training photo is a JPEG of
    twice the image size, so that the recipe's smallest crop, half a side, is not enlarged (our choice). That of a
    validation photo is a PNG of the size from which the centre is cropped: its pixels are exactly those of the photo.

    Args:
        photos: Checked ones.
        folder: The folder of the copies.
        size: The image size, the side length in pixels.
    """

    def copies(rows: list[tuple[str, int]], suffix: str) -> Copies:
        paths = [path for path, _ in rows if _side(photos.root / path) > _LARGE * size]
        return {photos.root / path: (folder / f'{path}{suffix}').absolute() for path in paths}

    def replaced(rows: list[tuple[str, int]], by: Copies) -> list[tuple[str, int]]:
        return [(str(by.get(photos.root / path, path)), label) for path, label in rows]

    train, val = copies(photos.train, '.jpg'), copies(photos.val, '.png')
    return replace(photos, train=replaced(photos.train, train), val=replaced(photos.val, val)), train, val


def make_copies(
    train: Copies, val: Copies, size: int, progress: Callable[[Iterable, int], Iterable] = lambda items, count: items
) -> None:
    """Write the copies of :func:`small_photos`; those that are there and not older than their photo are kept.

    Args:
        train: Of the training photos.
        val: Of the validation photos.
        size: The image size.
        progress: Wraps the copies that are being made, and their number.
    """
    todo = [(path, copy) for path, copy in {**train, **val}.items() if not _is_current(path, copy)]
    if todo:
        with quiet_pool() as pool:
            for _ in progress(pool.map(partial(_copy, size=size), *zip(*todo, strict=True)), len(todo)):
                pass


def _side(path: Path) -> int:
    with Image.open(path) as image:
        return min(image.size)


def _is_current(path: Path, copy: Path) -> bool:
    return copy.is_file() and copy.stat().st_mtime >= path.stat().st_mtime


def _copy(path: Path, copy: Path, size: int) -> None:
    image = _for_training(path, _COPY * size) if copy.suffix == '.jpg' else _for_validation(path, size)
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial_copy = copy.with_suffix('.partial')
    partial_copy.write_bytes(cv2.imencode(copy.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    partial_copy.replace(copy)


def _for_training(path: Path, size: int) -> np.ndarray:
    factor = next((f for f in _REDUCED if _side(path) >= f * size), 1)
    # As training decodes: upright, without alpha.
    image = cv2.imdecode(np.fromfile(path, np.uint8), _REDUCED.get(factor, cv2.IMREAD_COLOR))
    assert image is not None  # the photos are checked
    scale = size / min(image.shape[:2])
    width, height = (max(size, round(scale * side)) for side in image.shape[1::-1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _for_validation(path: Path, size: int) -> np.ndarray:
    found: dict[str, Any] = dict(img_path=str(path))
    for step in val_pipeline(size)[:-1]:  # all but the crop
        found = TRANSFORMS.build(step)(found)
    return found['img']
