"""A teacher's forward pass in each dtype and memory format that ``execution`` can choose.

All of them take turns, so that drift affects them equally. A combination that a network does not support has no time.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from experiments.readme import markdown
from torch import nn

from ._pairs import CLASSES, Pair, Setting, network
from ._timing import add_preset, device_of, interleaved, median_interval, shown

NETWORKS = (
    'resnet50',
    'mobilenetv3_large_100',
    'efficientnet_lite0',
    'convnext_tiny',
    'vgg11_bn',
    'densenet121',
    'vit_small_patch16_224',
)
_SIZES = {'cpu': (96, 8), 'gpu': (224, 128)}
SETTINGS = {
    f'{dtype}{", channels last" if channels_last else ""}': (dtype, channels_last)
    for dtype in ('float32', 'bfloat16')
    for channels_last in (False, True)
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_preset(parser, 'sizes: 96 pixels and a batch of 8; on a GPU 224 and 128')
    parser.add_argument('--rounds', type=int, default=10)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure each network in each dtype and memory format."""
    device = device_of(args)
    size, batch = _SIZES[args.preset]
    rows = []
    for name in NETWORKS:
        pair = Pair(name, name, size, batch)
        todo = {option: _forward(pair, Setting(device, *options)) for option, options in SETTINGS.items()}
        runs = {option: call for option, call in todo.items() if _is_supported(call)}
        times = interleaved(runs, args.rounds, name)
        rows.append({'network': name, 'ms': {option: median_interval(ms) for option, ms in times.items()}})
    return {'size': size, 'batch': batch, 'device': device, 'rounds': args.rounds, 'rows': rows}


def _forward(pair: Pair, setting: Setting) -> Callable[[], Any]:
    torch.manual_seed(0)
    model: nn.Module = network(pair.teacher, pair.size, setting).eval().requires_grad_(False)
    images = torch.randn(pair.batch, 3, pair.size, pair.size, device=setting.device)
    images = images.contiguous(memory_format=setting.memory_format)

    def forward() -> None:
        with torch.no_grad(), setting.autocast():
            assert model(images).shape == (pair.batch, CLASSES)

    return forward


def _is_supported(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RuntimeError:
        return False
    return True


def table(results: dict[str, Any]) -> str:
    """A Markdown table of medians with 95 % intervals."""
    rows = [
        [row['network'], *(shown(row['ms'][option]) if option in row['ms'] else '' for option in SETTINGS)]
        for row in results['rows']
    ]
    return markdown(['network', *(f'{option}, ms' for option in SETTINGS)], rows)
