"""Import times of mmpretrain, and of this package after it, each in a new process."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.progress import track

from ._timing import median_interval, shown

_ROOT = Path(__file__).resolve().parents[2]
_IMPORT = """
import time
start = time.perf_counter()
import mmpretrain.apis, mmpretrain.datasets, mmpretrain.engine, mmpretrain.models
framework = time.perf_counter()
import fnkd_plugin
print('seconds', framework - start, time.perf_counter() - framework)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('--rounds', type=int, default=7)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both times in seconds."""
    times: list[list[float]] = []
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(_ROOT), os.environ.get('PYTHONPATH', '')])}
    for _ in track(range(args.rounds + 1), 'import'):
        done = subprocess.run([sys.executable, '-c', _IMPORT], env=env, check=True, capture_output=True, text=True)
        times.append([float(word) for word in done.stdout.split('seconds')[1].split()])
    framework, ours = zip(*times[1:], strict=True)  # the first run fills the file cache
    rows = [{'mmpretrain_s': median_interval(framework, 3), 'fnkd_plugin_s': median_interval(ours, 3)}]
    return {'rounds': args.rounds, 'rows': rows}


def table(results: dict[str, Any]) -> str:
    """A Markdown table of medians with 95 % intervals."""
    row = results['rows'][0]
    return '\n'.join(
        [
            '| mmpretrain, s | fnkd_plugin on top, s |',
            '| --: | --: |',
            f'| {shown(row["mmpretrain_s"], 2)} | {shown(row["fnkd_plugin_s"], 2)} |',
        ]
    )
