"""Time and memory of a distilled step beyond a plain step and the teacher's forward pass.

The added time, distilled - plain - teacher, is computed for each round, so that drift cancels. Memory is compared with
max(plain, student's state + the teacher's temporary memory) + teacher's weights + one batch.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from experiments.readme import markdown

from . import _pairs
from ._memory import peak_bytes
from ._pairs import Batch, Pair, Setting
from ._timing import device_of, interleaved, median_interval, shown

_MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    _pairs.add_arguments(parser, rounds=30)
    parser.add_argument('--no-memory', action='store_true', help='times only')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure times and peak memory of each pair, both networks in channels-last format."""
    setting = Setting(device_of(args), _pairs.dtype_of(args), channels_last=True)
    rows = []
    for pair in _pairs.chosen(args):
        todo = steps(pair, setting)
        times = interleaved(todo, args.rounds, str(pair))
        times['added'] = [d - p - t for p, t, d in zip(*(times[name] for name in todo), strict=True)]
        row: dict[str, Any] = pair._asdict() | {f'{name}_ms': median_interval(ms) for name, ms in times.items()}
        row['added_share'] = round(row['added_ms'][0] / row['distilled_ms'][0], 4)
        rows.append(row if args.no_memory else row | _memory(pair, setting))
    return {'setting': setting._asdict(), 'rounds': args.rounds, 'rows': rows}


def steps(pair: Pair, setting: Setting, only: str | None = None) -> dict[str, Callable[[], Any]]:
    """Functions of a plain step, the teacher's forward pass and a distilled step; ``only`` builds one of them."""
    torch.manual_seed(0)
    batch = Batch(pair, setting)
    soft_loss = dict(type='FNKDLoss', tau=5.0)

    def teacher() -> Callable[[], Any]:
        frozen = _pairs.teacher(pair, setting)
        frozen.prepare(frozen.pixels)
        pixels = batch.tensors()[0]
        return lambda: frozen.predict(pixels)

    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        'plain': lambda: _pairs.train_step(_pairs.student(pair, setting), batch, setting),
        'teacher': teacher,
        'distilled': lambda: _pairs.train_step(_pairs.distilled(pair, setting, soft_loss), batch, setting),
    }
    return {name: make() for name, make in makers.items() if only in (None, name)}


def _one(pair: Pair, setting: Setting, kind: str) -> Callable[[], Any]:
    return steps(pair, setting, kind)[kind]


def _memory(pair: Pair, setting: Setting) -> dict[str, Any]:
    peaks = {
        kind: peak_bytes(_one, pair, setting, kind, on_gpu=setting.device == 'cuda')
        for kind in ('plain', 'teacher', 'distilled')
    }
    weights = _bytes_of(_pairs.network(pair.teacher, pair.size, setting))
    state = 3 * _bytes_of(_pairs.network(pair.student, pair.size, setting))  # weights, gradients, momentum
    batch = 4 * pair.batch * 3 * pair.size**2
    allowed = max(peaks['plain'], state + peaks['teacher'] - weights) + weights + batch
    found = {f'{kind}_mib': peak for kind, peak in peaks.items()} | {'teacher_weights_mib': weights}
    return {name: round(size / _MIB, 1) for name, size in (found | {'allowed_mib': allowed}).items()}


def _bytes_of(model: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def table(results: dict[str, Any]) -> str:
    """A Markdown table of medians with 95 % intervals."""
    heads = ['student ← teacher, pixels, batch', 'plain, ms', 'teacher, ms', 'distilled, ms', 'added, ms', 'share']
    rows = []
    for row in results['rows']:
        name = f'{row["student"]} ← {row["teacher"]}, {row["size"]}, {row["batch"]}'
        times = [shown(row[f'{name}_ms']) for name in ('plain', 'teacher', 'distilled', 'added')]
        peaks = '{plain_mib:.0f}, {distilled_mib:.0f} ({allowed_mib:.0f})'.format(**row) if 'plain_mib' in row else ''
        rows.append([name, *times, f'{row["added_share"]:.1%}', peaks])
    return markdown([*heads, 'peak: plain, distilled (allowed), MiB'], rows)
