"""A folder of photos as training and validation lists, checked before anything is trained."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fnkd_plugin.errors import SetupError, first_few

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
VAL_NAMES = ('val', 'valid', 'validation', 'test')
VAL_SHARE = 0.2
_SMALLEST, _LONGEST = 32, 4.0


@dataclass(frozen=True)
class Photos:
    """Photos of a folder.

    Attributes:
        root: The folder.
        classes: Names of the classes, sorted; a label is an index into them.
        train: Paths, absolute or relative to ``root``, and labels.
        val: The same for the validation photos.
        notes: What the user should know of single files, one sentence each.
    """

    root: Path
    classes: list[str]
    train: list[tuple[str, int]]
    val: list[tuple[str, int]]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Counts in one line."""
        counts = Counter(label for _, label in self.train).values()
        return (
            f'{len(self.classes)} classes; {len(self.train)} training photos '
            f'({min(counts)} to {max(counts)} per class), {len(self.val)} validation photos'
        )

    def write_lists(self, folder: Path) -> None:
        """Write ``classes.txt``, ``train.txt`` and ``val.txt``, the annotation files of MMPretrain's CustomDataset.

        Their paths are absolute, so that photos of equal names in another folder are others.

        Raises:
            SetupError: If the folder has those of other photos.
        """
        root = self.root.absolute()
        lines = {name: [f'{root / path} {label}' for path, label in getattr(self, name)] for name in ('train', 'val')}
        texts = {f'{name}.txt': '\n'.join(rows) + '\n' for name, rows in dict(lines, classes=self.classes).items()}
        files = {folder / name: text for name, text in texts.items()}
        for file, text in files.items():
            if file.is_file() and file.read_text(encoding='utf-8') != text:
                raise SetupError(
                    f'{file} lists other photos: {folder} is of another folder or image size, or photos were added or '
                    'removed; give another --out.'
                )
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text, encoding='utf-8')


def read_photos(root: Path, progress: Callable[[Iterable, int], Iterable] = lambda items, count: items) -> Photos:
    """Find and check the photos of ``root/train/CLASS/*.jpg`` and ``root/val/CLASS/*.jpg``, or of ``root/CLASS/*.jpg``.

    Without a validation folder a fifth of each class's photos is held out, chosen by a hash of the file's name, so that
    the split stays the same when photos are added. Photos that cannot be decoded are left out, with a note.

    Args:
        root: The folder.
        progress: Wraps the photos that are being decoded, and their number.

    Raises:
        SetupError: If there is no such folder, there are fewer than two classes, a class has no photos, or the classes
            of training and validation differ.
    """
    if not root.is_dir():
        raise SetupError(f'{root} is not a folder.' if root.exists() else f'The folder {root} does not exist.')
    train, val = _parts(root)
    found = {'train': _listed(train), 'val': _listed(val) if val is not None else {}}
    if len(found['train']) < 2:
        names = list(found['train'])
        raise SetupError(
            f'{train} has {f"one class folder ({names[0]})" if names else "no class folders"}; a classifier '
            f'needs at least two, each with its photos: {train}/CLASS/*.jpg.'
        )
    if val is not None:
        _check_same_classes(found['train'], found['val'], train, val)
    files = [path for part in found.values() for paths in part.values() for path in paths]
    notes, broken = _check_files(root, files, progress)
    notes += _not_read([train, val] if val is not None else [train])
    classes = sorted(found['train'])
    kept = {part: {c: [p for p in paths if p not in broken] for c, paths in of.items()} for part, of in found.items()}
    for part, of in kept.items():
        empty = [name for name, paths in of.items() if not paths]
        if empty:
            raise SetupError(f'{root}: {part}: no photo that can be read in class {first_few(empty)}.')
    if val is None:
        kept = _split(root, kept['train'])

    def rows(part: str) -> list[tuple[str, int]]:
        return [(str(p.relative_to(root)), k) for k, name in enumerate(classes) for p in kept[part].get(name, [])]

    notes += _few(classes, kept['train'])
    return Photos(root, classes, rows('train'), rows('val'), notes)


def _parts(root: Path) -> tuple[Path, Path | None]:
    train = root / 'train'
    if not train.is_dir():
        return root, None
    return train, next((root / name for name in VAL_NAMES if (root / name).is_dir()), None)


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Photos of each class folder, deeper ones too; hidden folders and files are skipped."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))
    found = {}
    for path in classes:
        photos = sorted(f for f in path.rglob('*') if f.suffix.lower() in SUFFIXES and f.is_file() and f.name[0] != '.')
        bad = [p for p in photos if not _utf8(p)]
        if bad or not _utf8(path):
            raise SetupError(f'{path!r}: the name of {(bad or [path])[0]!r} is not UTF-8; rename it.')
        found[path.name] = photos
    empty = [name for name, photos in found.items() if not photos]
    if empty:
        raise SetupError(
            f'{folder}: no photos ({", ".join(SUFFIXES)}) in class {first_few(empty)}; add photos or remove the folder.'
        )
    return found


def _not_read(folders: list[Path]) -> list[str]:
    """A note on files in class folders whose suffix is not supported, such as HEIC."""
    files = [path for folder in folders for path in sorted(folder.glob('*/**/*')) if path.is_file()]
    others = [str(f.relative_to(f.parents[1])) for f in files if f.suffix.lower() not in SUFFIXES and f.name[0] != '.']
    ends = ', '.join(SUFFIXES)
    return [f'{len(others)} files are not read ({first_few(others)}); supported are {ends}.'] if others else []


def _utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_same_classes(train: dict, val: dict, train_folder: Path, val_folder: Path) -> None:
    missing, surplus = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if surplus:
        raise SetupError(f'{val_folder} has classes that {train_folder} has not: {first_few(surplus)}.')
    if missing:
        raise SetupError(f'{val_folder} lacks classes of {train_folder}: {first_few(missing)}; add photos of them.')


def _check_files(root: Path, files: list[Path], progress: Callable) -> tuple[list[str], set[Path]]:
    notes, broken, content = [], set(), defaultdict(list)
    with quiet_pool() as pool:
        checked = pool.map(_look, files, chunksize=32)
        for path, (fault, size, digest) in zip(files, progress(checked, len(files)), strict=True):
            name = path.relative_to(root)
            if fault:
                broken.add(path)
                notes.append(f'{name} is left out: it cannot be decoded ({fault}).')
                continue
            content[digest].append(path)
            if min(size) < _SMALLEST or max(size) > _LONGEST * min(size):
                notes.append(f'{name} is very small or elongated, {size[0]} x {size[1]} pixels.')
    for same in content.values():
        if len(same) > 1:
            notes.append(f'{" and ".join(str(p.relative_to(root)) for p in same)} are the same photo.')
    return notes, broken


def quiet_pool() -> ProcessPoolExecutor:
    """Processes that decode photos; threads would wait for one another in the decoders of many formats."""
    return ProcessPoolExecutor(min(os.cpu_count() or 1, 8), initializer=_silence)


def _silence() -> None:
    """Close this process's standard error, to which decoders write warnings about metadata."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _look(path: Path) -> tuple[str, tuple[int, int], str]:
    """Why a file cannot be decoded ('' if it can), its size, and a hash of its content."""
    try:
        data = path.read_bytes()
        with Image.open(path) as image:
            size = image.size
            # JPEGs are decoded at an eighth of their size, which reads the whole file all the same.
            image.draft('RGB', (64, 64))
            image.load()
        # Training decodes with OpenCV, which knows fewer formats, and does not notice files that are cut off.
        if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8) is None:
            return 'OpenCV does not know its format', size, ''
    except Exception as error:  # decoders fail in as many ways as there are formats
        return str(error) or type(error).__name__, (0, 0), ''
    return '', size, hashlib.blake2b(data, digest_size=16).hexdigest()


def _split(root: Path, photos: dict[str, list[Path]]) -> dict[str, dict[str, list[Path]]]:
    parts: dict[str, dict[str, list[Path]]] = {'train': {}, 'val': {}}
    for name, paths in photos.items():
        if len(paths) < 2:
            raise SetupError(f'{root}: class {name} has one photo; two are needed, one of them for validation.')
        ordered = sorted(paths, key=lambda p: hashlib.blake2b(f'{name}/{p.name}'.encode(), digest_size=8).digest())
        count = max(1, round(VAL_SHARE * len(paths)))
        parts['val'][name], parts['train'][name] = sorted(ordered[:count]), sorted(ordered[count:])
    return parts


def _few(classes: list[str], train: dict[str, list[Path]]) -> list[str]:
    few = [name for name in classes if len(train[name]) < 5]
    return [f'{len(few)} classes have fewer than 5 training photos: {first_few(few)}.'] if few else []
