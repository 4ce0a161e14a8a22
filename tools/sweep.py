#!/usr/bin/env python
"""Mix a teacher into every classification config that MMPretrain ships, and run its distilled loss once.

``--out FILE`` holds one entry per config, and grows: a second call goes on where the first was stopped. ``--show``
prints the table of the docs from it.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fnkd_plugin import distill
from fnkd_plugin.config import config_file, named_dicts, plain_model, without_pretrained
from fnkd_plugin.engine.training import load_config
from fnkd_plugin.errors import SetupError

SHIPPED = config_file('mmpretrain::.')
METHODS = ('fnkd', 'kd')  # the second where the first is refused
RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], channel_order='rgb')


def shipped_configs() -> list[str]:
    """All config files but bases, relative to their folder."""
    files = (file.relative_to(SHIPPED) for file in SHIPPED.rglob('*.py'))
    return sorted(file.as_posix() for file in files if '_base_' not in file.parts)


def mix_and_run(name: str) -> dict[str, Any]:
    """What becomes of one config: ``method``, the first that its loss ran with; ``reason``, why none did; or ``other``,
    a model for another task than classification.
    """
    start = time.perf_counter()
    try:
        cfg = load_config(f'mmpretrain::{name}')
    except Exception as error:  # whatever a file does when it is read
        return dict(reason=f'does not load: {_first_line(error)}')
    if not cfg.model.type.endswith('Classifier'):
        return dict(other=cfg.model.type)
    refused: dict[str, str] = {}
    for method in METHODS:
        try:
            _run_loss(cfg, method)
        except Exception as error:
            refused[method] = _first_line(error)
            if isinstance(error, SetupError):
                continue
            break
        return dict(method=method, refused=refused, seconds=round(time.perf_counter() - start, 2))
    return dict(reason=list(refused.values())[-1])


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or ['']
    return text[0] if isinstance(error, SetupError) else f'{type(error).__name__}: {text[0]}'


def _run_loss(cfg: Config, method: str) -> None:
    student = without_pretrained(plain_model(cfg))
    sizes = [node.get('crop_size', node.get('scale')) for _, node in named_dicts(cfg.train_dataloader)]
    size = next((size for size in reversed(sizes) if isinstance(size, int)), 32)
    channels = len(student.get('data_preprocessor', {}).get('mean') or [0] * 3)
    classes = next(node['num_classes'] for _, node in named_dicts(student) if node.get('num_classes'))
    # Any module with a last affine layer will do: the student is what is tried.
    fn = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    pixels = {key: value[:channels] if isinstance(value, list) else value for key, value in RGB.items()}
    mixed = distill(cfg, dict(type='CallableTeacher', fn=fn, **pixels), method)
    mixed.model.update(student=student, pixels=pixels)
    model = MODELS.build(mixed.model)
    samples = [DataSample().set_gt_label(label) for label in range(2)]
    batch = dict(inputs=torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8), data_samples=samples)
    with torch.no_grad():
        losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    if not torch.isfinite(losses['loss_soft']):
        raise FloatingPointError(f'the soft loss is {losses["loss_soft"]}')


def table(results: dict[str, dict]) -> str:
    """Counts, and the classification configs that cannot be distilled with the reason, as Markdown."""
    counts = Counter(result.get('method', 'other' if 'other' in result else 'none') for result in results.values())
    rows = dict(fnkd='FNKD and KD', kd='KD alone', none='neither', other='no classification')
    lines = ['| configs | |', '|---|---|', *(f'| {counts[name]} | {said} |' for name, said in rows.items()), '']
    failed = {name: result['reason'] for name, result in results.items() if 'reason' in result}
    lines += ['| config | reason |', '|---|---|']
    return '\n'.join([*lines, *(f'| {name} | {reason.replace("|", "/")} |' for name, reason in sorted(failed.items()))])


def main(argv: list[str] | None = None) -> None:
    """Sweep, or show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, required=True, help='results file (JSON)')
    parser.add_argument('--only', default='', metavar='TEXT', help='configs with this in their path')
    parser.add_argument('--show', action='store_true', help='print the table, run nothing')
    args = parser.parse_args(argv)
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if args.show:
        print(table(results))
        return
    init_default_scope('mmpretrain')
    for name in shipped_configs():
        if args.only in name and name not in results:
            results[name] = mix_and_run(name)
            args.out.write_text(json.dumps(results, indent=1, sort_keys=True) + '\n')
            print(name, results[name], flush=True)


if __name__ == '__main__':
    main()
