"""The soft loss alone, forward and backward, against log_softmax + softmax + kl_div in eager and under torch.compile.

On a CPU with one thread. Extra bytes are what the allocator holds at most beyond the inputs, the gradient of the logits
among them.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile

from fnkd_plugin import Prediction
from fnkd_plugin.losses import FNKDLoss, KDLoss

from ._timing import interleaved, median_interval, shown

CLASSES = (10, 100, 1_000, 21_841)
IMAGES = (32, 256, 1_024, 4_096)
TEMPERATURE, TAU = 4.0, 2.0
LOSSES = {'kd': KDLoss(TEMPERATURE), 'fnkd': FNKDLoss(TAU)}
WAYS = ('eager', 'eager_compiled', 'ours', 'ours_compiled')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes, type and device."""
    parser.add_argument('--rounds', type=int, default=200, help='at most; fewer where one takes long')
    parser.add_argument('--max-logits', type=float, default=1e8, help='leaves out larger N * K; 24 GB hold 1e8')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--no-compile', action='store_true', help='eager only; compiling takes minutes on a CPU')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times, their ratios to eager's and peak extra bytes, for each policy and size."""
    torch.set_num_threads(1)
    rows = []
    for classes in CLASSES:
        for images in IMAGES:
            if images * classes > args.max_logits:
                continue
            for policy in LOSSES:
                rows.append(_row(policy, images, classes, args))
    setting = {'dtype': args.dtype, 'device': args.device, 'cpu_threads': torch.get_num_threads()}
    return {'setting': setting, 'rows': rows}


def _row(policy: str, images: int, classes: int, args: argparse.Namespace) -> dict[str, Any]:
    torch.compiler.reset()  # each size is compiled for itself
    student, teacher = (_prediction(images, classes, args, student) for student in (True, False))
    calls = {name: partial(_gradient, loss, student, teacher) for name, loss in _ways(policy, args).items()}
    expected = calls['eager']()
    for call in calls.values():
        torch.testing.assert_close(call(), expected, rtol=1e-3, atol=1e-2 * float(expected.abs().max()))
    rounds = max(7, min(args.rounds, int(2e8 / (images * classes))))
    times = interleaved(calls, rounds, f'{policy} {images} x {classes}')
    fp32 = 4 * images * classes
    row: dict[str, Any] = {'policy': policy, 'images': images, 'classes': classes, 'rounds': rounds}
    for name, call in calls.items():
        ratios = [t / e for t, e in zip(times[name], times['eager'], strict=True)]
        row[f'{name}_ms'] = median_interval(times[name], 4)
        row[f'{name}_ratio'] = median_interval(ratios, 3)
        row[f'{name}_extra'] = round(_peak_extra(call, args.device) / fp32, 2)
    return row


def _prediction(images: int, classes: int, args: argparse.Namespace, student: bool) -> Prediction:
    like: dict[str, Any] = {'device': args.device, 'dtype': getattr(torch, args.dtype)}
    logits = (3 * torch.randn(images, classes, device=args.device)).to(like['dtype'])
    found = Prediction(logits, 1 + 5 * torch.rand(images, **like), torch.randn(classes, device=args.device))
    return Prediction(*(x.requires_grad_(student) for x in found if x is not None))


def _ways(policy: str, args: argparse.Namespace) -> dict[str, Callable[[Prediction, Prediction], Tensor]]:
    eager, ours = partial(_reference, policy), LOSSES[policy]
    ways: dict[str, Callable] = {'eager': eager, 'ours': ours}
    if not args.no_compile:
        ways |= {f'{name}_compiled': torch.compile(way, dynamic=False, fullgraph=True) for name, way in ways.items()}
    return ways


def _reference(policy: str, student: Prediction, teacher: Prediction) -> Tensor:
    """As it is written everywhere, in fp32."""

    def scaled(x: Prediction) -> Tensor:
        if policy == 'kd':
            return x.logits.float() / TEMPERATURE
        return (x.logits.float() - x.origin) * (TAU / x.feature_norm.float().clamp_min(TAU))[:, None] + x.origin

    weight = TEMPERATURE**2 if policy == 'kd' else LOSSES[policy].loss_weight
    return weight * F.kl_div(
        F.log_softmax(scaled(student), dim=1), F.softmax(scaled(teacher), dim=1), reduction='batchmean'
    )


def _gradient(loss: Callable[[Prediction, Prediction], Tensor], student: Prediction, teacher: Prediction) -> Tensor:
    return torch.autograd.grad(loss(student, teacher), list(student), allow_unused=True)[0]


def _peak_extra(call: Callable[[], Any], device: str) -> int:
    if device != 'cpu':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as prof:
        call()
    events = prof.profiler.kineto_results.events()
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]'):
        held += size
        peak = max(peak, held)
    return peak


def table(results: dict[str, Any]) -> str:
    """A Markdown table: eager's time, the others as shares of it, and extra memory in sizes of the logits in fp32."""
    ways = [way for way in WAYS if f'{way}_ms' in results['rows'][0]]
    others = ways[1:]
    names = [way.replace('_', ', ') for way in others]
    lines = [
        f'| policy, N × K | eager, ms | {" | ".join(f"{name} / eager" for name in names)} '
        f'| extra memory: {"; ".join(["eager", *names])} |',
        '| --- |' + ' --: |' * (len(others) + 2),
    ]
    for row in results['rows']:
        shares = ' | '.join(shown(row[f'{way}_ratio'], 2) for way in others)
        extra = '; '.join(f'{row[f"{way}_extra"]:.1f}' for way in ways)
        name = f'{row["policy"]}, {row["images"]:,} × {row["classes"]:,}'
        lines.append(f'| {name} | {shown(row["eager_ms"], 3)} | {shares} | {extra} |')
    return '\n'.join(lines)
