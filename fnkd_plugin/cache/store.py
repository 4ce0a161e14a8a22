"""The files of a cache: one row for each image and view, with a checksum (format: docs/cache.md)."""

import json
import mmap
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses.top_k import compress

FORMAT = 3
BLOCK = 1024
"""Rows per block, which is marked as done as a whole; for mixed images rounded up to whole batches."""

_MOST_MAPPED = 32
_MANIFEST = 'manifest.json'
_WORD = np.dtype('<u4')


def row_type(num_classes: int, dtype: str, top_k: int | None = None) -> np.dtype:
    """The type of a row: its checksum, that of the image, the feature norm (NaN for none), the logits [K].

    With ``top_k`` the largest logits, the moments of the others and the classes, see :mod:`fnkd_plugin.losses.top_k`.
    Padded to a multiple of 4 bytes.
    """
    logits = np.dtype(dtype).newbyteorder('<')
    fields: list[tuple] = [('check', _WORD), ('pixels', _WORD), ('norm', '<f4')]
    if top_k is None:
        fields.append(('logits', logits, (num_classes,)))
    else:
        index = '<u2' if num_classes <= 2**16 else '<u4'
        fields += [('tail', '<f4', (3,)), ('logits', logits, (top_k,)), ('classes', index, (top_k,))]
    rest = -np.dtype(fields).itemsize % _WORD.itemsize
    return np.dtype([*fields, ('padding', 'u1', (rest,))] if rest else fields)


def rows_of(
    kind: np.dtype, pixels: np.ndarray, norms: Tensor | None, logits: Tensor, origin: Tensor | None = None
) -> np.ndarray:
    """Rows [N] of a :func:`row_type`, without their own checksums.

    Args:
        kind: Type of the rows.
        pixels: Checksums of the images [N].
        norms: Feature norms [N], or None.
        logits: Logits of all classes [N, K].
        origin: Logits of the zero feature [K], or None; used with ``top_k`` only.
    """
    rows = np.zeros(len(pixels), kind)
    rows['pixels'], rows['norm'] = pixels, np.nan if norms is None else norms.cpu()
    if 'classes' in kind.fields:  # type: ignore[operator]
        values, classes, tail = compress(logits, origin, rows['logits'].shape[1])
        rows['logits'], rows['classes'], rows['tail'] = values.cpu(), classes.cpu(), tail.cpu()
    else:
        rows['logits'] = logits.cpu()
    return rows


class Store:
    """The files of a cache in one folder.

    Rows are read through memory mappings, so that memory use does not grow with the cache, and verified by their
    checksums. Any number of processes may write, each its own blocks. A block is marked as done after its rows have
    reached the disk, so that marked blocks are complete even if the writer is killed or the disk is full.

    Args:
        folder: An existing cache.

    Attributes:
        manifest: The content of ``manifest.json``.
        origin: The logits of the zero feature [K], or None.
        row_type: Type of the rows.
        batch_size: Size of the batches whose images were mixed, or None. Row i of a view is then the i-th image that
            the view draws, batch after batch; without mixing it is image i of the data set.
        block: Number of rows that are marked as done together.

    Raises:
        SetupError: If there is no cache, it has another format, or a file is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.samples: int = self.manifest['data']['samples']
        self.views: int = self.manifest['views']
        self.row_type = _type_of(self.manifest)
        self.batch_size: int | None = (self.manifest['mixing'] or {}).get('batch_size')
        self.block = _block(self.manifest)
        origin = self.manifest['origin']
        self.origin = None if origin is None else np.array(origin, dtype='<f4')
        # Part of each row's checksum, so that rows of another cache are detected.
        self._salt = int(self.manifest['checksum'][:8], 16)
        # Check all files now, not during a long training.
        for view in range(self.views):
            self._open(_rows_file(view), self._view_bytes).close()
            self._open(_done_file(view), self._blocks).close()
        self._mapped: dict[int, tuple[mmap.mmap, np.ndarray]] = {}

    @classmethod
    def create(cls, folder: str | Path, manifest: dict[str, Any], origin: np.ndarray | None) -> 'Store':
        """Create an empty store atomically: of several processes that try, one succeeds.

        Raises:
            SetupError: If the folder exists and is not empty.
            OSError: If it cannot be written.
        """
        folder = Path(folder)
        manifest = {**manifest, 'format': FORMAT, 'origin': None if origin is None else origin.astype('f4').tolist()}
        manifest['checksum'] = _checksum_of(manifest)
        samples = manifest['data']['samples']
        sizes = samples * _type_of(manifest).itemsize, -(-samples // _block(manifest))
        folder.parent.mkdir(parents=True, exist_ok=True)
        target = folder.absolute()
        partial = target.with_name(f'.{target.name}.{uuid.uuid4().hex}')
        partial.mkdir()
        try:
            for view in range(manifest['views']):
                for name, size in zip((_rows_file(view), _done_file(view)), sizes, strict=True):
                    with open(partial / name, 'xb') as file:
                        file.truncate(size)  # sparse
            with open(partial / _MANIFEST, 'x') as file:
                file.write(json.dumps(manifest, indent=1))
                file.flush()
                os.fsync(file.fileno())
            try:
                partial.rename(folder)
            except OSError as error:
                if not folder.exists():
                    raise
                raise SetupError(f'{folder} exists and is not an empty folder; give another one ({error}).') from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return cls(folder)

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether the folder holds a cache."""
        return (Path(folder) / _MANIFEST).is_file()

    def lookup(self, views: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Copies of the rows at these places [N] of these views [N].

        Raises:
            SetupError: If a row's checksum is wrong: it is damaged, or of another place or cache.
        """
        if (views == views[:1]).all():
            rows = self._view(int(views[0])).take(places)
        else:
            rows = np.empty(len(places), self.row_type)
            for view in np.unique(views):
                mask = views == view
                rows[mask] = self._view(int(view)).take(places[mask])
        wrong = np.flatnonzero(rows['check'] != self._checks(rows, views, places))
        if len(wrong):
            view, place = int(views[wrong[0]]), int(places[wrong[0]])
            raise SetupError(
                f'Cache {self.folder}: row {place} of view {view} is damaged, or of another cache (its checksum does '
                f'not fit), and {len(wrong) - 1} more of these {len(rows)}; make the cache again.'
            )
        return rows

    def pending(self) -> Iterator[tuple[int, int, int]]:
        """The blocks that are not done: view, first row, and the row after the last."""
        for view in range(self.views):
            with self._open(_done_file(view), self._blocks) as file:
                done = np.frombuffer(file.read(), 'u1')
            if done.max(initial=0) > 1:
                raise _damaged(self.folder / _done_file(view), f'a mark is {done.max()}, not 0 or 1')
            for block in np.flatnonzero(done == 0).tolist():
                yield view, block * self.block, min((block + 1) * self.block, self.samples)

    def write(self, view: int, start: int, rows: np.ndarray) -> None:
        """Write the rows of one whole block with their checksums, and mark it as done.

        Raises:
            OSError: If the disk is full; the block is then not marked.
        """
        if start % self.block or len(rows) != min(self.block, self.samples - start) or rows.dtype != self.row_type:
            raise ValueError(f'not a block of this store: {len(rows)} rows of {rows.dtype} from {start}')
        rows = rows.copy()
        rows['check'] = self._checks(rows, np.full(len(rows), view), np.arange(start, start + len(rows)))
        # Not through a memory mapping, where a full disk raises a signal instead of an error.
        self._write(_rows_file(view), start * rows.itemsize, rows.tobytes())
        self._write(_done_file(view), start // self.block, b'\x01')

    def _checks(self, rows: np.ndarray, views: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Checksums of rows: 32-bit words times odd weights, modulo 2**32, so that any flipped bit changes them."""
        words = rows.view(_WORD).reshape(len(rows), -1)
        of_row, of_view, of_place = _weights(words.shape[1])
        checks = np.einsum('nk,k->n', words, of_row)
        return checks + views.astype(_WORD) * of_view + places.astype(_WORD) * of_place + _WORD.type(self._salt)

    @property
    def _blocks(self) -> int:
        return -(-self.samples // self.block)

    @property
    def _view_bytes(self) -> int:
        return self.samples * self.row_type.itemsize

    def _write(self, name: str, offset: int, content: bytes) -> None:
        rest = memoryview(content)
        descriptor = os.open(self.folder / name, os.O_WRONLY)
        try:
            while rest:
                count = os.pwrite(descriptor, rest, offset)
                rest, offset = rest[count:], offset + count
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _view(self, view: int) -> np.ndarray:
        if view not in self._mapped:
            if len(self._mapped) == _MOST_MAPPED:
                self._mapped.pop(next(iter(self._mapped)))  # each keeps a file open
            with self._open(_rows_file(view), self._view_bytes) as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped[view] = mapped, np.frombuffer(mapped, self.row_type)
        mapped, rows = self._mapped[view]
        # Reading beyond the end of a truncated file would kill the process with a signal.
        if mapped.size() < self._view_bytes:
            raise _damaged(self.folder / _rows_file(view), f'{mapped.size()} bytes, not {self._view_bytes}')
        return rows

    def _open(self, name: str, size: int) -> BinaryIO:
        """An existing file of this size, opened for reading."""
        path = self.folder / name
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait
                raise _damaged(path, 'not a regular file')
            if found.st_size != size:
                raise _damaged(path, f'{found.st_size} bytes, not {size}')
            return open(path, 'rb')
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error


def _damaged(path: Path, what: str) -> SetupError:
    return SetupError(f'Cache: {path} is missing or damaged ({what}); make the cache again.')


@cache
def _weights(words: int) -> tuple[np.ndarray, np.uint32, np.uint32]:
    """Odd weights of a row's words (0 for the checksum itself), of its view and of its place."""
    # The streams of RandomState are the same in all versions of NumPy.
    weights = np.random.RandomState(20260).randint(0, 2**32, words + 2, dtype=np.uint32) | np.uint32(1)
    weights[0] = 0
    return weights[:words].astype(_WORD), weights[words], weights[words + 1]


def _type_of(manifest: dict[str, Any]) -> np.dtype:
    return row_type(manifest['teacher']['num_classes'], manifest['dtype'], manifest['top_k'])


def _block(manifest: dict[str, Any]) -> int:
    size = (manifest['mixing'] or {}).get('batch_size', 1)
    return -(-BLOCK // size) * size


def _rows_file(view: int) -> str:
    return f'view-{view:04}.rows'


def _done_file(view: int) -> str:
    return f'view-{view:04}.done'


def _checksum_of(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != 'checksum'}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise SetupError(
            f'Cache: {folder} is not a cache (it has no {_MANIFEST}); make it with tools/cache_teacher.py.'
        )
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    found = manifest.get('format') if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise SetupError(f'Cache: {path} has format {found!r:.40}, this version reads {FORMAT}; make the cache again.')
    if manifest.get('checksum') != _checksum_of(manifest):
        raise _damaged(path, 'its checksum does not fit')
    return manifest
