#!/usr/bin/env python
"""Test a checkpoint of any config, of a distilled one the student alone; no teacher is built or needed.

The student's plain config is handed to MMPretrain's own test tool, whose flags all work.
"""

import argparse
import os
import runpy
import sys
import tempfile
from pathlib import Path

import mmpretrain
from mmengine.config import DictAction

import fnkd_plugin  # noqa: F401
from fnkd_plugin.config import merge_options, plain_config
from fnkd_plugin.engine import training
from fnkd_plugin.errors import SetupError

STOCK_TOOL = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'test.py'


def main(argv: list[str]) -> None:
    """Replace the config, the first argument, by its plain one, and run the stock tool."""
    if not argv or argv[0].startswith('-'):
        print(__doc__)
        runpy.run_path(str(STOCK_TOOL), run_name='__main__')
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    parser.add_argument('--launcher', default='none')
    ours, rest = parser.parse_known_args(argv[1:])
    cfg = training.load_config(argv[0])
    if cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(argv[0]).stem)
    os.environ.setdefault('LOCAL_RANK', '0')
    merge_options(cfg, ours.cfg_options)
    training.check_data_roots(cfg, ['test_dataloader'])
    plain = plain_config(cfg)
    training.set_loader_defaults(plain)
    training.prepare_cpu_processes(plain, ours.launcher)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(argv[0]).name
        plain.dump(path)
        sys.argv = [str(STOCK_TOOL), str(path), *rest, '--launcher', ours.launcher]
        runpy.run_path(str(STOCK_TOOL), run_name='__main__')


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except (SetupError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
