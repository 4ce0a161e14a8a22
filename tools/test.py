#!/usr/bin/env python
"""Test a checkpoint of any config, of a distilled one the student alone; no teacher is built or needed.

The student's plain config is handed to MMPretrain's own test tool, whose flags all work.
"""

import os
import runpy
import sys
import tempfile
from pathlib import Path

import mmpretrain

import fnkd_plugin  # noqa: F401
from fnkd_plugin.config import plain_config
from fnkd_plugin.engine import training
from fnkd_plugin.errors import SetupError

STOCK_TOOL = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'test.py'


def _launcher(argv: list[str]) -> str:
    for i, word in enumerate(argv):
        if word.startswith('--launcher'):
            return word.partition('=')[2] or argv[i + 1]
    return 'none'


def main(argv: list[str]) -> None:
    """Replace the config, the first argument, by its plain one, and run the stock tool."""
    if not argv or argv[0].startswith('-'):
        print(__doc__)
        runpy.run_path(str(STOCK_TOOL), run_name='__main__')
        return
    cfg = training.load_config(argv[0])
    if not any(word.startswith('--work-dir') for word in argv) and cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(argv[0]).stem)
    os.environ.setdefault('LOCAL_RANK', '0')
    plain = plain_config(cfg)
    training.prepare_cpu_processes(plain, _launcher(argv))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(argv[0]).name
        plain.dump(path)
        sys.argv = [str(STOCK_TOOL), str(path), *argv[1:]]
        runpy.run_path(str(STOCK_TOOL), run_name='__main__')


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except SetupError as error:
        sys.exit(f'error: {error}')
