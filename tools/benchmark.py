#!/usr/bin/env python
"""Measure the costs of distillation. Each sub-command is a module of ``tools/benchmarks/``."""

import argparse
import importlib
import json
import logging
import pkgutil
import sys
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

# Use the package of this checkout, and the modules next to this file.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.readme import document_of, replace_between

import benchmarks
from fnkd_plugin.cli.doctor import surroundings

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='name', required=True)
    for found in pkgutil.iter_modules(benchmarks.__path__):
        if found.name.startswith('_'):
            continue
        module = importlib.import_module(f'benchmarks.{found.name}')
        command = commands.add_parser(
            found.name, help=(module.__doc__ or '').split('\n')[0], description=module.__doc__
        )
        command.add_argument('--out', type=Path, help='(benchmarks/NAME.json; of --preset gpu in benchmarks/gpu)')
        command.add_argument('--show', action='store_true', help='measure nothing, only show the results file')
        command.add_argument('--docs', action='store_true', help='write the table into README.md or docs/')
        module.add_arguments(command)
        command.set_defaults(module=module)
    args = parser.parse_args(argv)
    args.on_gpu = getattr(args, 'preset', 'cpu') == 'gpu'
    args.out = args.out or ROOT / 'benchmarks' / ('gpu' if args.on_gpu else '') / f'{args.name}.json'
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, write and show the results."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    if not args.show:
        results = {**surroundings(), 'cpu_threads': torch.get_num_threads(), **args.module.run(args)}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + '\n')
    text = args.module.table(json.loads(args.out.read_text()))
    print(text)
    if args.docs:
        name = f'benchmark-{"gpu-" if args.on_gpu else ""}{args.name}'
        replace_between(document_of(ROOT, name), name, text)


if __name__ == '__main__':
    main()
