"""tools/benchmark.py: sub-commands measure, write what their tables read, and compare like with like."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = {path.stem for path in (ROOT / 'tools' / 'benchmarks').glob('[!_]*.py')}
RESULTS = [
    (f'benchmark-{prefix}{path.stem}', path)
    for prefix, folder in (('', 'benchmarks'), ('gpu-', 'benchmarks/gpu'))
    for path in sorted((ROOT / folder).glob('*.json'))
    if path.stem in BENCHMARKS
]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tool's modules, with one tiny pair."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    names = ('_memory', '_pairs', '_timing', 'peers', 'step')
    found = SimpleNamespace(**{name: importlib.import_module(f'benchmarks.{name}') for name in names})
    main = importlib.import_module('benchmark')
    found.main, found.document_of = main.main, main.document_of
    found.pair = found._pairs.Pair('test_resnet', 'test_resnet', 32, 8)
    monkeypatch.setattr(found._pairs, 'PAIRS', (found.pair,))
    return found


@pytest.mark.parametrize(('name', 'rows'), [('step', 1), ('peers', 2)])
def test_results_become_a_table(
    name: str, rows: int, tool: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / f'{name}.json'
    more = ['--no-memory'] if name == 'step' else []
    tool.main([name, '--preset', 'cpu', '--rounds', '3', '--out', str(out), *more])
    results = json.loads(out.read_text())
    assert results['versions']['timm'] == timm.__version__ and len(results['rows']) == rows
    for row in results['rows']:
        intervals = [value for key, value in row.items() if key.endswith('_ms')]
        assert len(intervals) >= 4 and all(low <= median <= high for median, low, high in intervals)
    capsys.readouterr()
    tool.main([name, '--out', str(out), '--show'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + rows and len({line.count('|') for line in lines}) == 1


@pytest.mark.parametrize(('name', 'path'), RESULTS, ids=[name for name, _ in RESULTS])
def test_the_docs_show_the_results_file(name: str, path: Path, tool: SimpleNamespace) -> None:
    _, _, after = tool.document_of(ROOT, name).read_text().partition(f'<!-- {name} -->\n')
    shown, closed, _ = after.partition(f'\n<!-- /{name} -->')
    results = json.loads(path.read_text())
    assert closed and shown == importlib.import_module(f'benchmarks.{path.stem}').table(results)


def test_each_benchmark_has_results() -> None:
    assert {path.stem for _, path in RESULTS} == BENCHMARKS


def test_rounds_are_interleaved_and_turn(tool: SimpleNamespace) -> None:
    called: list[str] = []
    todo = {name: lambda name=name: called.append(name) for name in 'abc'}
    times = tool._timing.interleaved(todo, 4, 'x')
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys('abc', 4)
    assert ''.join(called) == 'abcbcacab' * 2


def test_intervals_cover_the_median_in_19_of_20_cases(tool: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(0)
    found = [tool._timing.median_interval(torch.rand(30, generator=generator).tolist(), 6) for _ in range(400)]
    assert 0.91 < sum(low <= 0.5 <= high for _, low, high in found) / 400 < 0.99


@pytest.mark.parametrize('other', ['timm_task', 'naive', 'torchdistill_box'])
def test_peers_do_the_same_work(other: str, tool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """From equal networks on equal images, three steps give equal students."""
    if other == 'torchdistill_box':
        pytest.importorskip('torchdistill')
    students = []
    for make in (tool.peers.ours, getattr(tool.peers, other)):
        made: list[Any] = []

        def noting(build: Callable[..., Any], made: list = made) -> Callable[..., Any]:
            def seeded(*args: Any) -> Any:
                torch.manual_seed(len(made))
                made.append(build(*args))
                return made[-1]

            return seeded

        with monkeypatch.context() as patched:
            for name in ('network', 'student'):
                patched.setattr(tool._pairs, name, noting(getattr(tool._pairs, name)))
            step = make(tool.pair, tool._pairs.Setting())
        for _ in range(3):
            step()
        students.append({key.removeprefix('model.'): value for key, value in made[0].state_dict().items()})
    torch.testing.assert_close(students[1], students[0], rtol=1e-4, atol=1e-5)


def _hold(mib: int) -> Callable[[], torch.Tensor]:
    kept = torch.ones(mib, 2**18)  # a MiB a row
    return lambda: kept + 1


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux')
def test_peak_memory_is_what_is_kept_and_what_is_taken_in_passing(tool: SimpleNamespace) -> None:
    small, large = (tool._memory.peak_bytes(_hold, mib) / 2**20 for mib in (1, 101))
    assert 190 < large - small < 220
