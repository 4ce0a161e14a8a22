"""The files of a cache: what is marked as done is complete, comes back as it was, and no damage goes unnoticed."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fnkd_plugin.cache import store as store_files
from fnkd_plugin.cache.store import BLOCK, Store, row_type, rows_of
from fnkd_plugin.errors import SetupError

SAMPLES, VIEWS, CLASSES = BLOCK + 300, 3, 5
pytestmark = pytest.mark.upstream


def _manifest(
    views: int = VIEWS, samples: int = SAMPLES, batch_size: int | None = None, top_k: int | None = None
) -> dict[str, Any]:
    teacher = dict(name='a', config={}, weights='1f', num_classes=CLASSES, feature_norm=True)
    mixing = dict(batch_size=batch_size, augments=['Mixup'], probabilities=None, draws='2e')
    return dict(
        seed=0,
        views=views,
        dtype='float16',
        top_k=top_k,
        image=[3, 8, 8],
        data=dict(dataset='a', samples=samples, annotations='3d', classes=['b'], pipeline=['c']),
        mixing=batch_size and mixing,
        teacher=dict(teacher, classes=None, class_ids=None),
        software=dict(torch='2'),
    )


def _store(folder: Path, dtype: str = 'float16', **options: Any) -> Store:
    manifest = _manifest(**options) | dict(dtype=dtype)
    return Store.create(folder, manifest, np.arange(CLASSES, dtype='f4'))


def _small(folder: Path, **options: Any) -> Store:
    """A whole cache of two views of six images."""
    store = _store(folder, **{'views': 2, 'samples': 6, **options})
    kind = store.row_type
    for view, start, end in list(store.pending()):
        logits = torch.randn(end - start, CLASSES, generator=torch.Generator().manual_seed(view))
        origin = torch.from_numpy(store.origin)
        store.write(view, start, rows_of(kind, np.arange(start, end) + 9, torch.ones(end - start), logits, origin))
    return store


def _read_all(folder: Path) -> list[bytes]:
    """All that training reads of a cache; raises SetupError if it is incomplete."""
    store = Store(folder)
    if list(store.pending()):
        raise SetupError('lacks rows')
    places = np.arange(store.samples)
    rows = [store.lookup(np.full(len(places), view), places).tobytes() for view in range(store.views)]
    return [*rows, store.origin.tobytes(), json.dumps(store.manifest).encode()]


def _rows(view: int, start: int, end: int, dtype: str = 'float16') -> np.ndarray:
    index = np.arange(start, end)
    logits = np.sin(index[:, None] + 1000 * view + np.arange(CLASSES))
    return rows_of(row_type(CLASSES, dtype), index * 7 + view, torch.from_numpy(1.0 + index), torch.from_numpy(logits))


def _assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """But for the checksums, which are not of the row alone."""
    for name in expected.dtype.names[1:]:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_rows_come_back(dtype: str, tmp_path: Path) -> None:
    store = _store(tmp_path / 'cache', dtype)
    for block in list(store.pending()):
        store.write(block[0], block[1], _rows(*block, dtype))
    store = Store(tmp_path / 'cache')
    assert not list(store.pending())
    np.testing.assert_array_equal(store.origin, np.arange(CLASSES))
    random = np.random.RandomState(0)
    views, indices = random.randint(0, VIEWS, 200), random.randint(0, SAMPLES, 200)
    expected = np.concatenate([_rows(v, i, i + 1, dtype) for v, i in zip(views, indices, strict=True)])
    _assert_same(store.lookup(views, indices), expected)
    of_one = views == 1
    _assert_same(store.lookup(views[of_one], indices[of_one]), expected[of_one])


def test_blocks_hold_whole_batches(tmp_path: Path) -> None:
    store = _store(tmp_path / 'cache', batch_size=100)
    assert store.block == 1100
    for block in list(store.pending()):
        store.write(block[0], block[1], _rows(*block))
    assert not list(Store(tmp_path / 'cache').pending())
    _assert_same(store.lookup(np.ones(9, int), np.arange(1095, 1104)), _rows(1, 1095, 1104))


def test_a_full_disk_loses_nothing_that_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path / 'cache')
    first, second, *_ = store.pending()
    store.write(first[0], first[1], _rows(*first))
    whole, left = os.pwrite, [2000]

    def until_full(descriptor: int, content: bytes, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = whole(descriptor, content[: left[0]], offset)
        left[0] -= count
        return count

    monkeypatch.setattr(os, 'pwrite', until_full)
    with pytest.raises(OSError, match='No space left'):
        store.write(second[0], second[1], _rows(*second))
    monkeypatch.undo()
    store = Store(tmp_path / 'cache')
    assert first not in list(store.pending()) and second in list(store.pending())
    found = store.lookup(np.zeros(BLOCK, int), np.arange(BLOCK))
    _assert_same(found, _rows(*first))


def test_rows_are_on_disk_before_they_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, order = _store(tmp_path / 'cache'), []
    names = {}
    opened, pwrite, fsync = os.open, os.pwrite, os.fsync

    def note_open(path: Path, *args: int) -> int:
        descriptor = opened(path, *args)
        names[descriptor] = Path(path).suffix[1:]
        return descriptor

    monkeypatch.setattr(os, 'open', note_open)
    monkeypatch.setattr(os, 'pwrite', lambda d, *a: order.append(f'write {names[d]}') or pwrite(d, *a))
    monkeypatch.setattr(os, 'fsync', lambda d: order.append(f'sync {names[d]}') or fsync(d))
    store.write(0, BLOCK, _rows(0, BLOCK, SAMPLES))
    assert order == ['write rows', 'sync rows', 'write done', 'sync done']


def test_a_partial_block_is_refused(tmp_path: Path) -> None:
    store = _store(tmp_path / 'cache')
    for start, end in ((0, BLOCK - 1), (1, BLOCK + 1), (BLOCK, SAMPLES - 1)):
        with pytest.raises(ValueError, match='not a block'):
            store.write(0, start, _rows(0, start, end))


@pytest.mark.parametrize(('classes', 'index'), [(65536, 'u2'), (65537, 'u4')])
def test_top_rows_hold_the_largest_and_moments_of_the_others(classes: int, index: str) -> None:
    kind = row_type(classes, 'float32', top_k=3)
    assert kind.itemsize == 4 + 4 + 4 + 3 * 4 + 3 * 4 + (3 * np.dtype(index).itemsize + 3) // 4 * 4
    logits = torch.arange(float(classes)).flip(0)[None] / classes
    [row] = rows_of(kind, np.zeros(1), None, logits, origin=torch.ones(classes))
    assert row['classes'].tolist() == [0, 1, 2]
    np.testing.assert_allclose(row['logits'], logits[0, :3])
    np.testing.assert_allclose(row['tail'], [logits[0, 3:].mean() - 1, logits[0, 3:].var(correction=0), 0], atol=1e-6)


def test_what_is_not_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r'not a cache .*tools/cache_teacher\.py'):
        Store(tmp_path / 'cache')
    _store(tmp_path / 'cache')
    path = tmp_path / 'cache' / 'manifest.json'
    path.write_text(json.dumps(dict(json.loads(path.read_text()), format=2)))
    with pytest.raises(SetupError, match='has format 2, this version reads 3'):
        Store(tmp_path / 'cache')


DAMAGE: dict[str, Callable[[Path], object]] = {
    'lost': lambda path: path.unlink(),
    'cut': lambda path: os.truncate(path, path.stat().st_size - 1),
    'empty': lambda path: os.truncate(path, 0),
    'longer': lambda path: os.truncate(path, path.stat().st_size + 1),
    'folder': lambda path: (path.unlink(), path.mkdir()),
    'FIFO': lambda path: (path.unlink(), os.mkfifo(path)),
    'loop': lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize('name', ['view-0001.rows', 'view-0001.done', 'manifest.json'])
@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_file_is_found_when_the_store_is_opened(name: str, how: str, tmp_path: Path) -> None:
    """Not in the epoch that reads it."""
    _small(tmp_path / 'cache')
    DAMAGE[how](tmp_path / 'cache' / name)
    with pytest.raises(SetupError, match=r'cache'):
        Store(tmp_path / 'cache')


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small(tmp_path / 'cache')

    def refuse(path: Path, *args: str) -> Any:
        if Path(path).name == 'view-0001.rows':
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open(path, *args)

    monkeypatch.setattr(store_files, 'open', refuse, raising=False)
    with pytest.raises(SetupError, match=r'view-0001\.rows .*Permission denied'):
        Store(tmp_path / 'cache')


# Every seventh bit is at least one of each byte.
@pytest.mark.parametrize('step', [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('options', [{}, dict(dtype='float32'), dict(top_k=3)], ids=['f2', 'f4', 'top 3'])
def test_flipped_bits_of_each_byte_are_found(options: dict, step: int, tmp_path: Path) -> None:
    _small(tmp_path / 'cache', **options)
    good = _read_all(tmp_path / 'cache')
    flipped = 0
    for path in sorted((tmp_path / 'cache').iterdir()):
        content = path.read_bytes()
        for position in range(0, 8 * len(content), step):
            spoilt = bytearray(content)
            spoilt[position // 8] ^= 1 << position % 8
            path.write_bytes(spoilt)
            flipped += 1
            try:
                _read_all(tmp_path / 'cache')
            except SetupError:
                continue
            pytest.fail(f'bit {position} of {path.name} was flipped unnoticed')
        path.write_bytes(content)
    assert _read_all(tmp_path / 'cache') == good
    assert flipped > 6500 // step


@pytest.mark.parametrize('what', ['row', 'row of another view', 'zeros', 'zeroed logits', 'swapped logits', 'view'])
def test_misplaced_rows_are_found(what: str, tmp_path: Path) -> None:
    store = _small(tmp_path / 'cache')
    first, second = (tmp_path / 'cache' / f'view-000{view}.rows' for view in range(2))
    rows, others = (np.fromfile(path, store.row_type) for path in (first, second))
    if what == 'row':
        rows[1] = rows[4]
    elif what == 'row of another view':
        rows[1] = others[1]
    elif what == 'zeros':
        rows[1:] = np.zeros(5, rows.dtype)
    elif what == 'zeroed logits':
        rows['logits'][1] = 0
    elif what == 'swapped logits':
        rows['logits'][1] = rows['logits'][1, ::-1]
    else:
        rows[:] = others
    rows.tofile(first)
    with pytest.raises(SetupError, match=r'row [01] of view 0 is damaged, or of another cache'):
        _read_all(tmp_path / 'cache')


def test_a_row_of_another_cache_is_found(tmp_path: Path) -> None:
    """As two builders, each with its own teacher, could leave one."""
    one, other = tmp_path / 'one', tmp_path / 'other'
    _small(one)
    store = Store.create(other, _manifest(views=2, samples=6) | dict(seed=1), None)
    for view, start, end in list(store.pending()):
        store.write(view, start, np.fromfile(one / f'view-000{view}.rows', store.row_type)[start:end])
    (one / 'view-0000.rows').write_bytes((other / 'view-0000.rows').read_bytes())
    with pytest.raises(SetupError, match='row 0 of view 0 is damaged, or of another cache'):
        _read_all(one)


def test_a_file_cut_while_in_use_is_found(tmp_path: Path) -> None:
    """Reading beyond its end would be a bus error."""
    store = _small(tmp_path / 'cache')
    places = np.arange(6)
    store.lookup(np.zeros(6, int), places)
    os.truncate(tmp_path / 'cache' / 'view-0000.rows', 10)
    with pytest.raises(SetupError, match=r'view-0000\.rows is missing or damaged \(10 bytes'):
        store.lookup(np.zeros(6, int), places)


def test_other_numbers_in_the_manifest_are_found(tmp_path: Path) -> None:
    _small(tmp_path / 'cache')
    path = tmp_path / 'cache' / 'manifest.json'
    manifest = json.loads(path.read_text())
    for key, value in dict(views=1, seed=1, dtype='float32', image=[3, 8, 9], origin=None).items():
        path.write_text(json.dumps(dict(manifest, **{key: value})))
        with pytest.raises(SetupError, match=r'manifest\.json is missing or damaged \(its checksum does not fit'):
            Store(tmp_path / 'cache')


def test_a_manifest_of_other_content_is_refused(tmp_path: Path) -> None:
    _small(tmp_path / 'cache')
    path = tmp_path / 'cache' / 'manifest.json'
    for content in ('', '[1, 2]', 'null', '7', '{"format": 3', '[' * 100_000, '{"format": 3}', '\x00', '1' * 5000):
        path.write_text(content)
        with pytest.raises(SetupError, match=r'manifest\.json'):
            Store(tmp_path / 'cache')
    path.write_bytes(b'\xff\xfe')
    with pytest.raises(SetupError, match=r'manifest\.json'):
        Store(tmp_path / 'cache')


def test_of_two_builders_one_makes_the_folder(tmp_path: Path) -> None:
    first = _small(tmp_path / 'cache')
    with pytest.raises(SetupError, match='exists and is not an empty folder'):
        Store.create(tmp_path / 'cache', _manifest() | dict(seed=5), None)
    assert Store(tmp_path / 'cache').manifest == first.manifest
    assert [path.name for path in tmp_path.iterdir()] == ['cache']


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        _store(tmp_path / 'cache')
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='Linux')
def test_many_views_hold_few_files_open(tmp_path: Path) -> None:
    store = _small(tmp_path / 'cache', views=40)
    before = len(os.listdir('/proc/self/fd'))
    for view in range(40):
        store.lookup(np.full(2, view), np.arange(2))
    assert len(os.listdir('/proc/self/fd')) <= before + 32
