"""Downscaled copies of large photos, which are decoded faster."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fnkd_plugin.cli.photos import Photos, quiet_pool

_LARGE, _COPY = 4, 2
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


def small_photos(
    photos: Photos, folder: Path, size: int, progress: Callable[[Iterable, int], Iterable] = lambda items, count: items
) -> Photos:
    """The photos, with copies in place of the large ones.

    A photo is large if its shorter side is more than 4 times the image size. Its copy, a JPEG in ``folder``, has twice
    the image size, so that the recipe's smallest crop, half a side, is not enlarged (our choice). Copies that are
    there and not older than their photo are kept.

    Args:
        photos: Checked ones.
        folder: The folder of the copies.
        size: The image size, the side length in pixels.
        progress: Wraps the photos that are being copied, and their number.
    """
    large = [path for path, _ in photos.train + photos.val if _side(photos.root / path) > _LARGE * size]
    copies = {path: (folder / f'{path}.jpg').absolute() for path in large}
    missing = [(photos.root / path, copy) for path, copy in copies.items() if not _is_current(photos.root / path, copy)]
    if missing:
        with quiet_pool() as pool:
            for _ in progress(pool.map(partial(_copy, size=_COPY * size), *zip(*missing, strict=True)), len(missing)):
                pass

    def rows(of: list[tuple[str, int]]) -> list[tuple[str, int]]:
        return [(str(copies.get(path, path)), label) for path, label in of]

    return replace(photos, train=rows(photos.train), val=rows(photos.val))


def _side(path: Path) -> int:
    with Image.open(path) as image:
        return min(image.size)


def _is_current(path: Path, copy: Path) -> bool:
    return copy.is_file() and copy.stat().st_mtime >= path.stat().st_mtime


def _copy(path: Path, copy: Path, size: int) -> None:
    factor = next((f for f in _REDUCED if _side(path) >= f * size), 1)
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, _REDUCED.get(factor, cv2.IMREAD_COLOR))  # as training decodes: upright, without alpha
    scale = size / min(image.shape[:2])
    width, height = (max(size, round(scale * side)) for side in image.shape[1::-1])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial_copy = copy.with_suffix('.partial')
    partial_copy.write_bytes(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    partial_copy.replace(copy)
