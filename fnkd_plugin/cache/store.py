"""Knowledge on disk: one row an image and view, in files that NumPy reads (docs/cache.md has the format)."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses.top_k import compress

FORMAT = 2
BLOCK = 1024
"""Rows that are marked as done together; of mixed images so many more that the last batch is whole."""

DTYPES = ('float16', 'float32')
_MOST_MAPPED = 32
_MANIFEST = 'manifest.json'
_KEYS = ('seed', 'views', 'dtype', 'top_k', 'image', 'origin', 'data', 'mixing', 'teacher')
_ORIGIN = 'origin.npy'


def row_type(num_classes: int, dtype: str, top_k: int | None = None) -> np.dtype:
    """A row: the checksum of the image, the feature norm (NaN if there is none), the logits [K].

    With ``top_k`` the largest logits, the moments of the others and the classes, see :mod:`fnkd_plugin.losses.top_k`.
    """
    logits = np.dtype(dtype).newbyteorder('<')
    fields: list[tuple] = [('pixels', '<u4'), ('norm', '<f4')]
    if top_k is None:
        return np.dtype([*fields, ('logits', logits, (num_classes,))])
    index = '<u2' if num_classes <= 2**16 else '<u4'
    return np.dtype([*fields, ('tail', '<f4', (3,)), ('logits', logits, (top_k,)), ('classes', index, (top_k,))])


def rows_of(
    kind: np.dtype, pixels: np.ndarray, norms: Tensor | None, logits: Tensor, origin: Tensor | None = None
) -> np.ndarray:
    """Rows [N] of a :func:`row_type`.

    Args:
        kind: The type.
        pixels: Checksums [N].
        norms: Feature norms [N], or None.
        logits: Of all classes, [N, K].
        origin: Their origin, [K], or None; read for rows of the largest logits.
    """
    rows = np.empty(len(pixels), kind)
    rows['pixels'], rows['norm'] = pixels, np.nan if norms is None else norms.cpu()
    if 'classes' in kind.fields:  # type: ignore[operator]
        values, classes, tail = compress(logits, origin, rows['logits'].shape[1])
        rows['logits'], rows['classes'], rows['tail'] = values.cpu(), classes.cpu(), tail.cpu()
    else:
        rows['logits'] = logits.cpu()
    return rows


class Store:
    """The files of one folder.

    Reading maps them into memory: rows that are not looked up cost none. Writing goes to any number of processes at
    once, each its own blocks; a block is marked as done when its rows have reached the disk, so that what is marked is
    complete, whenever the writer is killed or the disk runs full.

    Args:
        folder: An existing cache.

    Attributes:
        manifest: What the knowledge is and belongs to, as in the file.
        origin: The logits of the zero feature [K], or None.
        row_type: Of its rows.
        batch_size: Of the batches whose images were mixed, or None. The places of a view's rows are those in which it
            draws its images, batch after batch; unmixed, those of the images in the data set.
        block: How many rows are marked as done together.

    Raises:
        SetupError: If there is none, or it is of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.samples: int = self.manifest['data']['samples']
        self.views: int = self.manifest['views']
        self.row_type = _type_of(self.manifest)
        self.batch_size: int | None = (self.manifest['mixing'] or {}).get('batch_size')
        self.block = _block(self.manifest)
        classes = self.manifest['teacher']['num_classes']
        self.origin = self._load(_ORIGIN, np.dtype('<f4'), classes).copy() if self.manifest['origin'] else None
        # All at once: an epoch of a long run is no time to find one missing.
        for view in range(self.views):
            self._load(_rows_file(view), self.row_type, self.samples)
            self._load(_done_file(view), np.dtype('u1'), self._blocks)
        self._mapped: dict[int, np.ndarray] = {}

    @classmethod
    def create(cls, folder: str | Path, manifest: dict[str, Any], origin: np.ndarray | None) -> 'Store':
        """A new store, nothing of it done; the manifest comes last, so that a folder with one is whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        samples = manifest['data']['samples']
        manifest = {'format': FORMAT, 'origin': origin is not None, **manifest}
        dtype = _type_of(manifest)
        for view in range(manifest['views']):
            blocks = -(-samples // _block(manifest))
            for path, kind, count in ((_rows_file(view), dtype, samples), (_done_file(view), 'u1', blocks)):
                # Of full size at once, and sparse.
                np.lib.format.open_memmap(folder / path, mode='w+', dtype=kind, shape=(count,))
        if origin is not None:
            np.save(folder / _ORIGIN, origin.astype('<f4'), allow_pickle=False)
        partial = folder / f'.{_MANIFEST}'
        partial.write_text(json.dumps(manifest, indent=1) + '\n')
        partial.replace(folder / _MANIFEST)
        return cls(folder)

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether there is one."""
        return (Path(folder) / _MANIFEST).is_file()

    def lookup(self, views: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Copies of the rows at these places [N] of these views [N]."""
        if (views == views[:1]).all():
            return self._view(int(views[0])).take(places)
        found = np.empty(len(places), self.row_type)
        for view in np.unique(views):
            of_view = views == view
            found[of_view] = self._view(int(view)).take(places[of_view])
        return found

    def pending(self) -> Iterator[tuple[int, int, int]]:
        """The blocks that are not done: view, first row, and the row after the last."""
        for view in range(self.views):
            done = self._load(_done_file(view), np.dtype('u1'), self._blocks)
            for block in np.flatnonzero(done == 0).tolist():
                yield view, block * self.block, min((block + 1) * self.block, self.samples)

    def write(self, view: int, start: int, rows: np.ndarray) -> None:
        """Write the rows of one whole block, and mark it as done.

        Raises:
            OSError: If the disk is full; the block is then not done.
        """
        if start % self.block or len(rows) != min(self.block, self.samples - start) or rows.dtype != self.row_type:
            raise ValueError(f'no block of this store: {len(rows)} rows of {rows.dtype} from {start}')
        # Not through the mapping, which answers a full disk with a signal.
        self._write(_rows_file(view), start, rows, self.samples)
        self._write(_done_file(view), start // self.block, np.ones(1, 'u1'), self._blocks)

    @property
    def _blocks(self) -> int:
        return -(-self.samples // self.block)

    def _write(self, name: str, start: int, rows: np.ndarray, count: int) -> None:
        offset = self._load(name, rows.dtype, count).offset + start * rows.itemsize
        content = memoryview(rows.tobytes())
        descriptor = os.open(self.folder / name, os.O_WRONLY)
        try:
            while content:
                count = os.pwrite(descriptor, content, offset)
                content, offset = content[count:], offset + count
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _view(self, view: int) -> np.ndarray:
        if view not in self._mapped:
            if len(self._mapped) == _MOST_MAPPED:
                self._mapped.pop(next(iter(self._mapped)))  # each holds a file open
            # A plain array on the mapping: indexing the subclass costs more.
            self._mapped[view] = np.asarray(self._load(_rows_file(view), self.row_type, self.samples))
        return self._mapped[view]

    def _load(self, name: str, dtype: np.dtype, count: int) -> np.memmap:
        path = self.folder / name
        try:
            found = np.load(path, mmap_mode='r', allow_pickle=False)
            if found.dtype != dtype or found.shape != (count,):
                raise ValueError(f'{found.shape} of {found.dtype} and not {count} of {dtype}')
        except (FileNotFoundError, ValueError, EOFError) as error:
            raise SetupError(
                f'Knowledge store: {path} is missing or damaged ({error}); make the cache again.'
            ) from error
        return found


def _type_of(manifest: dict[str, Any]) -> np.dtype:
    return row_type(manifest['teacher']['num_classes'], manifest['dtype'], manifest['top_k'])


def _block(manifest: dict[str, Any]) -> int:
    size = (manifest['mixing'] or {}).get('batch_size', 1)
    return -(-BLOCK // size) * size


def _rows_file(view: int) -> str:
    return f'view-{view:04}.npy'


def _done_file(view: int) -> str:
    return f'done-{view:04}.npy'


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise SetupError(
            f'Knowledge store: {folder} is no cache (no {_MANIFEST}); make it with tools/cache_teacher.py.'
        )
    try:
        manifest = dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise SetupError(f'Knowledge store: {path} is damaged ({error}); make the cache again.') from error
    if manifest.get('format') == 1:  # which knew no mixed images
        manifest = {**manifest, 'format': FORMAT, 'mixing': None}
    missing = [key for key in _KEYS if key not in manifest] if manifest.get('format') == FORMAT else []
    if missing:
        raise SetupError(f'Knowledge store: {path} is damaged (no {", ".join(missing)}); make the cache again.')
    if manifest.get('format') != FORMAT:
        raise SetupError(
            f'Knowledge store: {path} is of format {manifest.get("format")}, this version reads {FORMAT}; make the '
            'cache again.'
        )
    return manifest
