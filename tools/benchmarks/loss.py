"""Time and memory of the soft loss against log_softmax + softmax + kl_div, eager and under torch.compile.

On a CPU our loss is plain PyTorch code with one thread, on a GPU the Triton kernel. A call is timed until the device
has finished. At small sizes this is the host's launch time, of which ``nothing`` is autograd's part. On a GPU a call is
also captured in a CUDA graph and replayed, which leaves only the device's time. Extra memory is the allocator's peak
beyond the inputs, including the gradient of the logits, in multiples of the logits' size. Needs neither MMEngine nor
MMPretrain.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from experiments.readme import markdown
from torch import Tensor
from torch.profiler import profile

from fnkd_plugin.losses import FNKDLoss, KDLoss
from fnkd_plugin.prediction import Prediction

from ._timing import add_preset, interleaved, median_interval, shown

SIZES = {
    'cpu': [(images, classes) for classes in (10, 100, 1_000) for images in (32, 256)],
    'gpu': [(images, classes) for classes in (100, 1_000, 21_841) for images in (256, 2_048)],
}
COMPILED = [(256, 1_000), (256, 21_841), (2_048, 21_841)]
TEMPERATURE, TAU = 4.0, 2.0
LOSSES = {'kd': KDLoss(TEMPERATURE), 'fnkd': FNKDLoss(TAU)}
REPLAYS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_preset(parser, 'sizes, and type: fp32; on a GPU bf16')
    parser.add_argument('--rounds', type=int, default=100)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure times, their ratios to eager and the extra peak memory for each policy and size."""
    torch.set_num_threads(1)
    device, dtype = ('cuda', torch.bfloat16) if args.preset == 'gpu' else ('cpu', torch.float32)
    rows = []
    for images, classes in SIZES[args.preset]:
        for policy in LOSSES:
            given = [_prediction(images, classes, device, dtype, learned) for learned in (True, False)]
            variants = _variants(policy, compiled=(images, classes) in COMPILED)
            size = {'policy': policy, 'images': images, 'classes': classes}
            rows.append(size | measure(variants, *given, args.rounds, ' '.join(map(str, size.values()))))
    setting = {'device': device, 'dtype': str(dtype).removeprefix('torch.'), 'cpu_threads': 1, 'rounds': args.rounds}
    return {'setting': setting, 'rows': rows}


class _Nothing(torch.autograd.Function):
    """An autograd function that computes nothing: its time is the overhead of autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_empty(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


def measure(
    variants: dict[str, Callable], student: Prediction, teacher: Prediction, rounds: int, title: str
) -> dict[str, Any]:
    """Measure all variants at one size, after comparing their gradients."""
    calls = {name: partial(gradients, loss, student, teacher) for name, loss in variants.items()}
    expected = calls['eager']()
    for call in calls.values():
        for found, exact in zip(call(), expected, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2 * float(exact.abs().max()))
    calls['nothing'] = lambda: torch.autograd.grad(_Nothing.apply(student.logits), student.logits)
    times = interleaved(calls, rounds, title)
    row: dict[str, Any] = {}
    for name, call in calls.items():
        ratios = [t / e for t, e in zip(times[name], times['eager'], strict=True)]
        row[f'{name}_ms'] = median_interval(times[name], 4)
        row[f'{name}_ratio'] = median_interval(ratios, 3)
        if name == 'nothing':
            continue
        if student.logits.is_cuda and name != 'compiled':
            row[f'{name}_graph_ms'] = round(_replayed(call), 4)
        row[f'{name}_extra'] = round(_peak_extra(call, student.logits.is_cuda) / student.logits.nbytes, 2)
    return row


def _prediction(images: int, classes: int, device: str, dtype: torch.dtype, learned: bool) -> Prediction:
    logits = (3 * torch.randn(images, classes, device=device)).to(dtype)
    found = logits, 1 + 5 * torch.rand(images, device=device), torch.randn(classes, device=device)
    return Prediction(*(x.requires_grad_(learned) for x in found))


def _variants(policy: str, compiled: bool) -> dict[str, Callable[[Prediction, Prediction], Tensor]]:
    eager = partial(_naive, policy)
    variants: dict[str, Callable] = {'eager': eager, 'ours': LOSSES[policy]}
    if compiled:
        torch.compiler.reset()  # each size is compiled for itself
        variants['compiled'] = torch.compile(eager, dynamic=False, fullgraph=True)
    return variants


def _naive(policy: str, student: Prediction, teacher: Prediction) -> Tensor:
    """The usual implementation, in fp32."""

    def scaled(x: Prediction) -> Tensor:
        if policy == 'kd':
            return x.logits.float() / TEMPERATURE
        return (x.logits.float() - x.origin) * (TAU / x.feature_norm.float().clamp_min(TAU))[:, None] + x.origin

    weight = TEMPERATURE**2 if policy == 'kd' else LOSSES[policy].loss_weight
    return weight * F.kl_div(
        F.log_softmax(scaled(student), dim=1), F.softmax(scaled(teacher), dim=1), reduction='batchmean'
    )


def gradients(loss: Callable[[Prediction, Prediction], Tensor], student: Prediction, teacher: Prediction) -> list:
    """Gradients of the logits, and of norm and bias if the policy uses them."""
    found = torch.autograd.grad(loss(student, teacher), list(student), allow_unused=True)
    return [x for x in found if x is not None]


def _replayed(call: Callable[[], Any]) -> float:
    """Milliseconds of a call that was captured in a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
    graph.replay()
    for event in events:
        event.record()
        graph.replay()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(events))


def _peak_extra(call: Callable[[], Any], on_gpu: bool) -> int:
    if on_gpu:
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
    """A Markdown table: times, ratios to eager, and extra memory in multiples of the logits' size."""
    heads = ['policy, N × K', 'eager, ms', 'compiled / eager', 'ours / eager', 'autograd alone / eager']
    rows = []
    for row in results['rows']:
        name = f'{row["policy"]}, {row["images"]:,} × {row["classes"]:,}'
        ratios = [f'{variant}_ratio' for variant in ('compiled', 'ours', 'nothing')]
        shares = [shown(row[ratio], 2) if ratio in row else '' for ratio in ratios]
        graph = f'{row["ours_graph_ms"]:.3f} / {row["eager_graph_ms"]:.3f}' if 'ours_graph_ms' in row else ''
        extra = f'{row["eager_extra"]:.1f}; {row["ours_extra"]:.1f}'
        rows.append([name, shown(row['eager_ms'], 3), *shares, graph, extra])
    return markdown([*heads, 'device alone: ours / eager, ms', 'extra memory: eager; ours'], rows)
