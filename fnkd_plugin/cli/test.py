"""``fnkd test``: test a checkpoint of any config, of a distilled one the student alone; no teacher is built or needed.

The student's plain config is handed to MMPretrain's own test tool, whose flags all work.
"""

import importlib.util
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmpretrain
from mmengine.config import Config
from mmengine.runner import Runner

from fnkd_plugin.cli.mistakes import explained
from fnkd_plugin.cli.options import parsed
from fnkd_plugin.cli.progress_hook import TestProgressHook
from fnkd_plugin.cli.terminal import quiet, silent_start
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm import training
from fnkd_plugin.mm.config import load_config, plain_config
from fnkd_plugin.mm.distill_config import name_groups

STOCK_TOOL = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'test.py'


def main(argv: list[str] | None = None) -> None:
    """Replace the config by its plain one, and run the stock tool."""
    args = parsed('test', argv)
    if args.out_item and not args.out:
        raise SetupError('--out-item: give --out FILE as well.')
    stock = _stock_tool()
    cfg = load_config(args.config, args.cfg_options)
    if not cfg.get('test_dataloader'):
        raise SetupError(f'{args.config} has no test_dataloader, and so no images to test on; add one to the config.')
    if cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    training.check_data_roots(cfg, ['test_dataloader'])
    name_groups(cfg)
    plain = plain_config(cfg)
    checks = [dict(type='CheckClassesHook'), dict(type='CheckWeightsHook')]
    plain.custom_hooks = [*(plain.get('custom_hooks') or ()), *checks]
    training.set_loader_defaults(plain)
    training.prepare_cpu_processes(plain, args.launcher)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(args.config).name
        plain.dump(path)
        args.config, args.cfg_options = str(path), None
        stock.parse_args = lambda: args
        if not args.verbose:
            stock.Runner = SimpleNamespace(from_cfg=_quiet_runner)
        with explained(plain):
            stock.main()


def _quiet_runner(cfg: Config) -> Runner:
    with silent_start():
        runner = Runner.from_cfg(cfg)
    quiet(runner)
    runner.register_hook(TestProgressHook())
    return runner


def _stock_tool() -> Any:
    spec = importlib.util.spec_from_file_location('mmpretrain_test', STOCK_TOOL)
    assert spec is not None and spec.loader is not None
    stock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stock)
    return stock
