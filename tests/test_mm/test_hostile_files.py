"""Every door, every hostile file: nothing runs, crashes or hangs; it is read, or refused in one sentence."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fnkd_plugin.errors import SetupError
from tests.helpers import CLASSES, timm_checkpoint
from tests.hostile import SLOTS, broken_files, executing, odd_runs, replaced, spliced, wasteful
from tests.test_mm.doors import DOORS, TIMM, train

FEW = ('system', 'state of a log', 'numpy void', 'deep lists', 'expanded tensor', 'bomb', 'a model')
RUNS = ('resume', 'load_from', 'test', 'publish', 'mmpretrain teacher')


@pytest.fixture(scope='module')
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole checkpoint of a run, and one of timm."""
    folder = tmp_path_factory.mktemp('whole')
    train(folder)
    weights = torch.load(timm_checkpoint(folder, 'test_resnet', CLASSES), weights_only=True)
    return dict(run=torch.load(folder / 'epoch_1.pth', weights_only=True), timm=dict(state_dict=weights, meta={}))


def _files(folder: Path, content: dict[str, Any], runs: bool, few: bool = False) -> Iterator[tuple[str, Path]]:
    path = folder / 'x.pth'
    for number, (case, harm) in enumerate({**executing(folder / 'it_ran'), **wasteful()}.items()):
        for slot in {'meta': None, SLOTS[number % len(SLOTS)]: None} if not few or case in FEW else ():
            yield f'{case} as {slot}', spliced(path, content, slot, harm)
    for case, write in broken_files(content).items():
        if not few or case in FEW:
            write(path)
            yield case, path
    for case, (keys, value) in odd_runs(folder / 'other').items() if runs else ():
        torch.save(replaced(content, *keys, value=value), path)
        yield case, path


def _knock(door: Callable[[Path, Path], Any], files: Iterator[tuple[str, Path]], folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    faults = []
    other = folder / 'other'
    other.mkdir()
    for name in ('thesis.pth', 'thesis'):
        (other / name).write_text('mine')
    for case, path in files:
        start = time.perf_counter()
        try:
            door(path, folder / 'run')
            counts['read'] += 1
        except SetupError as error:
            counts['refused'] += 1
            if '\n' in str(error) or len(str(error)) > 1000:
                faults.append((case, 'is not one sentence', str(error)))
        except Exception as error:
            counts['crashed'] += 1
            faults.append((case, 'crashed', repr(error)[:300]))
        if time.perf_counter() - start > 30:
            faults.append((case, 'hung', time.perf_counter() - start))
        if (folder / 'it_ran').exists() or (other / 'it_ran').exists():
            faults.append((case, 'ran', ''))
            (folder / 'it_ran').unlink(missing_ok=True)
        if not all((other / name).exists() for name in ('thesis.pth', 'thesis')):
            faults.append((case, 'removed', list(other.iterdir())))
            break
        shutil.rmtree(folder / 'run', ignore_errors=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(dict(counts))
    assert not faults, '\n'.join(map(str, faults))
    return counts


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.upstream
def test_some_files(door: str, contents: dict[str, Any], tmp_path: Path) -> None:
    content = contents['timm' if door in TIMM else 'run']
    counts = _knock(DOORS[door], _files(tmp_path, content, False, few=True), tmp_path)
    assert counts['read'] >= 3 and counts['refused'] >= 4


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize('door', DOORS)
def test_all_files(door: str, contents: dict[str, Any], tmp_path: Path) -> None:
    content = contents['timm' if door in TIMM else 'run']
    counts = _knock(DOORS[door], _files(tmp_path, content, door in RUNS), tmp_path)
    assert counts['read'] >= 40 and counts['refused'] >= 40
