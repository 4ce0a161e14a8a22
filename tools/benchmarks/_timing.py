"""Interleaved timing of several calls."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.progress import track

PRESETS = ('cpu', 'gpu')
WARM_UP = 2


def add_preset(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--preset``, which sets sizes, device and the folder of results."""
    parser.add_argument('--preset', choices=PRESETS, default=PRESETS[torch.cuda.is_available()], help=text)


def device_of(args: argparse.Namespace) -> str:
    """The torch device of the preset."""
    return 'cuda' if args.preset == 'gpu' else 'cpu'


def interleaved(todo: Mapping[str, Callable[[], Any]], rounds: int, title: str) -> dict[str, list[float]]:
    """Milliseconds of each call in each round.

    In each round every function is called once, so that drift affects all equally. The order rotates between rounds, so
    that no function always follows the same one.
    """
    times: dict[str, list[float]] = {name: [] for name in todo}
    names = list(todo)
    for i in track(range(rounds + WARM_UP), title):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            taken = milliseconds(todo[name])
            if i >= WARM_UP:
                times[name].append(taken)
    return times


def milliseconds(call: Callable[[], Any]) -> float:
    """The time of one call, until the device has finished."""
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return 1000 * (time.perf_counter() - start)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_interval(values: Sequence[float], digits: int = 2) -> list[float]:
    """Median, and its 95 % interval from the ranks (binomial), as ``[median, low, high]``."""
    ordered = sorted(values)
    n = len(ordered)
    half = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half))
    return [round(value, digits) for value in (statistics.median(ordered), ordered[low], ordered[high])]


def shown(interval: Sequence[float], digits: int = 1) -> str:
    """``[median, low, high]`` as text for a table."""
    median, low, high = interval
    return f'{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]'
