"""What mixing a teacher into a config takes at the start of a run, beside reading that config."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.mix import distill, teacher_config

from ._timing import interleaved, median_interval, shown

CONFIGS = (
    'mmpretrain::resnet/resnet50_8xb8_cub.py',
    'mmpretrain::resnet/resnet18_8xb16_cifar10.py',
    'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py',
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument('--rounds', type=int, default=20)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of both, config by config."""
    rows = []
    for name in CONFIGS:
        cfg = load_config(name)
        todo: dict[str, Callable[[], Any]] = {
            'read': partial(load_config, name),
            'mix': lambda cfg=cfg: distill(cfg, teacher_config('timm:resnet152', 'teacher.pth'), 'fnkd', tau=8),
        }
        times = interleaved(todo, args.rounds, name)
        rows.append({'config': name, **{f'{key}_ms': median_interval(ms) for key, ms in times.items()}})
    return {'rounds': args.rounds, 'rows': rows}


def table(results: dict[str, Any]) -> str:
    """A Markdown table of medians with 95 % intervals."""
    lines = ['| config | read, ms | a teacher mixed in, ms |', '| --- | --: | --: |']
    lines += [f'| {row["config"]} | {shown(row["read_ms"])} | {shown(row["mix_ms"])} |' for row in results['rows']]
    return '\n'.join(lines)
