#!/usr/bin/env python
"""What distilling costs beyond training and the teacher, measured side by side in one run."""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.progress import track
from rich.table import Table

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fnkd_plugin import Distiller
from fnkd_plugin.teachers import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher

ROOT = Path(__file__).resolve().parents[1]

# student, teacher, image size, batch size: steps of more than 100 ms on two CPU cores
PAIRS = [('resnet18', 'resnet50', 64, 32), ('mobilenetv3_small_100', 'resnet18', 96, 32)]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
CLASSES = 200


def _student(name: str) -> Any:
    return MODELS.build(
        dict(
            type='TimmStudent',
            model=name,
            num_classes=CLASSES,
            channels_last=True,
            data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True),
        )
    )


def _steps(student: str, teacher: str, size: int, batch: int) -> dict[str, Callable[[], Any]]:
    """The three things to time: a plain step, the teacher alone, a distilled step."""
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(i % CLASSES) for i in range(batch)]
    model = timm.create_model(teacher, num_classes=CLASSES)
    frozen = ModelTeacher(model, model, PixelFormat.of(MEAN, STD, 'rgb'), teacher, channels_last=True)
    head = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=5.0))
    plain, distilled = _student(student), Distiller(_student(student), frozen, head)
    optims = {m: OptimWrapper(torch.optim.SGD(m.parameters(), 0.01, momentum=0.9)) for m in (plain, distilled)}
    data = {'inputs': images, 'data_samples': samples}
    pixels = plain.data_preprocessor(data)['inputs']
    return {
        'plain': lambda: plain.train_step(data, optims[plain]),
        'teacher': lambda: frozen.predict(pixels),
        'distilled': lambda: distilled.train_step(data, optims[distilled]),
    }


def _median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and the ranks of its 95 % interval (binomial)."""
    ordered = sorted(values)
    n = len(ordered)
    half = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


def step(rounds: int) -> list[dict[str, Any]]:
    """Interleaved rounds of each pair; the added time is taken round by round, so that drift cancels."""
    rows = []
    for student, teacher, size, batch in PAIRS:
        todo = _steps(student, teacher, size, batch)
        times: dict[str, list[float]] = {name: [] for name in todo}
        for i in track(range(rounds + 2), f'{student} <- {teacher}'):
            for name, call in todo.items():
                start = time.perf_counter()
                call()
                if i >= 2:
                    times[name].append(1000 * (time.perf_counter() - start))
        times['added'] = [d - p - t for p, t, d in zip(*times.values(), strict=True)]
        row: dict[str, Any] = {'student': student, 'teacher': teacher, 'size': size, 'batch': batch}
        row |= {f'{name}_ms': [round(v, 2) for v in _median_interval(values)] for name, values in times.items()}
        rows.append(row)
    return rows


_IMPORT = """
import time
start = time.perf_counter()
import mmpretrain.apis, mmpretrain.datasets, mmpretrain.engine, mmpretrain.models
framework = time.perf_counter()
import fnkd_plugin
print('seconds', framework - start, time.perf_counter() - framework)
"""


def imports(rounds: int) -> list[dict[str, Any]]:
    """Import of mmpretrain, then of this package on top of it, in fresh processes."""
    times: list[list[float]] = []
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    for _ in track(range(rounds + 1), 'import'):
        done = subprocess.run([sys.executable, '-c', _IMPORT], env=env, check=True, capture_output=True, text=True)
        times.append([float(word) for word in done.stdout.split('seconds')[1].split()])
    framework, ours = zip(*times[1:], strict=True)  # the first one fills the file cache
    named = {'mmpretrain_s': framework, 'fnkd_plugin_s': ours}
    return [{name: [round(v, 3) for v in _median_interval(list(values))] for name, values in named.items()}]


def _show_imports(rows: list[dict[str, Any]]) -> None:
    for name, (median, low, high) in rows[0].items():
        print(f'{name:14} {median:.2f} [{low:.2f}, {high:.2f}]')


def _show_steps(rows: list[dict[str, Any]]) -> None:
    table = Table(title='ms a step, median [95 % interval]')
    for column in ('pair', 'plain', 'teacher', 'distilled', 'added', 'added / distilled'):
        table.add_column(column, justify='left' if column == 'pair' else 'right', no_wrap=True)
    for row in rows:
        cells = ['{:.1f} [{:.1f}, {:.1f}]'.format(*row[f'{k}_ms']) for k in ('plain', 'teacher', 'distilled', 'added')]
        share = row['added_ms'][0] / row['distilled_ms'][0]
        table.add_row(f'{row["student"]} <- {row["teacher"]}', *cells, f'{share:.1%}')
    Console(width=170).print(table)


def main() -> None:
    """Run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, help_text, measure, show, rounds in (
        ('step', 'plain step, teacher and distilled step', step, _show_steps, 30),
        ('import', "this package's import on top of mmpretrain's", imports, _show_imports, 7),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument('--rounds', type=int, default=rounds)
        command.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / f'{name}.json')
        command.set_defaults(measure=measure, show=show)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    rows = args.measure(args.rounds)
    machine = {
        'cpu_threads': torch.get_num_threads(),
        'machine': platform.machine(),
        'python': platform.python_version(),
        **{name: version(name) for name in ('torch', 'timm')},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({'machine': machine, 'rounds': args.rounds, 'rows': rows}, indent=1) + '\n')
    args.show(rows)


if __name__ == '__main__':
    main()
