"""Made-up photos in folders, for the tests of the commands."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {'amber': (200, 140, 20), 'blue': (30, 60, 200), 'green': (40, 160, 60)}


def photo(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """Noise around a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(-30, 31, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def folder(root: Path, train: int = 10, val: int = 4, classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """``root/train/CLASS/N.jpg`` and ``root/val/CLASS/N.jpg`` of three sizes; with ``val=0``, ``root/CLASS/N.jpg``."""
    for k, name in enumerate(classes):
        for part, count in (('train', train), ('val', val)) if val else (('', train),):
            for i in range(count):
                path = root / part / name / f'{i}.jpg'
                photo(path, COLOURS[name], seed=1000 * k + 100 * len(part) + i, size=(48 + 8 * (i % 3), 40))
    return root
