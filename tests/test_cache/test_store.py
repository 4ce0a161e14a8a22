"""Knowledge on disk: what is marked as done is complete, and comes back as it was."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fnkd_plugin.cache.store import BLOCK, Store, row_type, rows_of
from fnkd_plugin.errors import SetupError

SAMPLES, VIEWS, CLASSES = BLOCK + 300, 3, 5
pytestmark = pytest.mark.upstream


def _store(folder: Path, dtype: str = 'float16', views: int = VIEWS, batch_size: int | None = None) -> Store:
    manifest = dict(
        seed=0,
        views=views,
        dtype=dtype,
        top_k=None,
        image=[3, 8, 8],
        data=dict(samples=SAMPLES),
        mixing=batch_size and dict(batch_size=batch_size),
        teacher=dict(num_classes=CLASSES),
    )
    return Store.create(folder, manifest, np.arange(CLASSES, dtype='f4'))


def _rows(view: int, start: int, end: int, dtype: str = 'float16') -> np.ndarray:
    index = np.arange(start, end)
    logits = np.sin(index[:, None] + 1000 * view + np.arange(CLASSES))
    return rows_of(row_type(CLASSES, dtype), index * 7 + view, torch.from_numpy(1.0 + index), torch.from_numpy(logits))


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_rows_come_back(dtype: str, tmp_path: Path) -> None:
    store = _store(tmp_path, dtype)
    for block in list(store.pending()):
        store.write(block[0], block[1], _rows(*block, dtype))
    store = Store(tmp_path)
    assert not list(store.pending())
    np.testing.assert_array_equal(store.origin, np.arange(CLASSES))
    random = np.random.RandomState(0)
    views, indices = random.randint(0, VIEWS, 200), random.randint(0, SAMPLES, 200)
    expected = np.concatenate([_rows(v, i, i + 1, dtype) for v, i in zip(views, indices, strict=True)])
    np.testing.assert_array_equal(store.lookup(views, indices), expected)
    of_one = views == 1
    np.testing.assert_array_equal(store.lookup(views[of_one], indices[of_one]), expected[of_one])


def test_blocks_hold_whole_batches(tmp_path: Path) -> None:
    store = _store(tmp_path, batch_size=100)
    assert store.block == 1100
    for block in list(store.pending()):
        store.write(block[0], block[1], _rows(*block))
    assert not list(Store(tmp_path).pending())
    np.testing.assert_array_equal(store.lookup(np.ones(9, int), np.arange(1095, 1104)), _rows(1, 1095, 1104))


def test_the_first_format_is_one_of_unmixed_images(tmp_path: Path) -> None:
    _store(tmp_path)
    manifest = json.loads((tmp_path / 'manifest.json').read_text())
    del manifest['mixing']
    (tmp_path / 'manifest.json').write_text(json.dumps(dict(manifest, format=1)))
    assert Store(tmp_path).batch_size is None


def test_a_full_disk_loses_nothing_that_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path)
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
    store = Store(tmp_path)
    assert first not in list(store.pending()) and second in list(store.pending())
    found = store.lookup(np.zeros(BLOCK, int), np.arange(BLOCK))
    np.testing.assert_array_equal(found, _rows(*first))


def test_rows_are_on_disk_before_they_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, order = _store(tmp_path), []
    names = {}
    opened, pwrite, fsync = os.open, os.pwrite, os.fsync

    def note_open(path: Path, *args: int) -> int:
        descriptor = opened(path, *args)
        names[descriptor] = Path(path).name[:4]
        return descriptor

    monkeypatch.setattr(os, 'open', note_open)
    monkeypatch.setattr(os, 'pwrite', lambda d, *a: order.append(f'write {names[d]}') or pwrite(d, *a))
    monkeypatch.setattr(os, 'fsync', lambda d: order.append(f'sync {names[d]}') or fsync(d))
    store.write(0, BLOCK, _rows(0, BLOCK, SAMPLES))
    assert order == ['write view', 'sync view', 'write done', 'sync done']


def test_half_a_block_is_none(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for start, end in ((0, BLOCK - 1), (1, BLOCK + 1), (BLOCK, SAMPLES - 1)):
        with pytest.raises(ValueError, match='no block'):
            store.write(0, start, _rows(0, start, end))


@pytest.mark.parametrize(('classes', 'index'), [(65536, 'u2'), (65537, 'u4')])
def test_top_rows_hold_the_largest_and_moments_of_the_others(classes: int, index: str) -> None:
    kind = row_type(classes, 'float32', top_k=3)
    assert kind.itemsize == 4 + 4 + 3 * 4 + 3 * 4 + 3 * np.dtype(index).itemsize
    logits = torch.arange(float(classes)).flip(0)[None] / classes
    [row] = rows_of(kind, np.zeros(1), None, logits, origin=torch.ones(classes))
    assert row['classes'].tolist() == [0, 1, 2]
    np.testing.assert_allclose(row['logits'], logits[0, :3])
    np.testing.assert_allclose(row['tail'], [logits[0, 3:].mean() - 1, logits[0, 3:].var(correction=0), 0], atol=1e-6)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r'is no cache .*tools/cache_teacher\.py'):
        Store(tmp_path)
    _store(tmp_path)
    manifest = json.loads((tmp_path / 'manifest.json').read_text())
    (tmp_path / 'manifest.json').write_text(json.dumps(dict(manifest, format=99)))
    with pytest.raises(SetupError, match='is of format 99, this version reads 2'):
        Store(tmp_path)
    del manifest['origin']
    for content in ('{"format": 2', '[1, 2]', json.dumps(manifest)):
        (tmp_path / 'manifest.json').write_text(content)
        with pytest.raises(SetupError, match=r'manifest\.json is damaged .*make the cache again'):
            Store(tmp_path)


@pytest.mark.parametrize('name', ['view-0001.npy', 'done-0002.npy', 'origin.npy'])
@pytest.mark.parametrize('how', ['lost', 'cut', 'short', 'pickled'])
def test_a_damaged_file_is_found_when_the_store_is_opened(name: str, how: str, tmp_path: Path) -> None:
    """Never in the epoch that reads it; and without its origin no store passes for one of a teacher that has none."""
    _store(tmp_path)
    path = tmp_path / name
    if how == 'lost':
        path.unlink()
    elif how == 'cut':
        path.write_bytes(path.read_bytes()[:-1])
    else:
        np.save(path, np.zeros(1) if how == 'short' else np.array([dict(code='runs')], dtype=object), allow_pickle=True)
    with pytest.raises(SetupError, match=rf'{name} is missing or damaged .*make the cache again'):
        Store(tmp_path)


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='Linux')
def test_many_views_hold_few_files_open(tmp_path: Path) -> None:
    store = _store(tmp_path, views=40)
    before = len(os.listdir('/proc/self/fd'))
    for view in range(40):
        store.lookup(np.full(2, view), np.arange(2))
    assert len(os.listdir('/proc/self/fd')) <= before + 32
