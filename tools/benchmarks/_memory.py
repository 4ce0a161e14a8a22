"""Peak memory of a piece of work: on a CPU in a process of its own."""

import gc
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STEPS = 4


def peak_bytes(prepare: Callable[..., Callable[[], Any]], *args: Any, on_gpu: bool = False) -> int:
    """What building and then doing something takes beyond the imported libraries.

    On a CPU the peak of resident memory (Linux), on CUDA that of the memory allocated beyond what was allocated before.
    What building alone takes in passing is not counted, what it leaves is.

    Args:
        prepare: A function of a module, that builds what is to be done and returns it.
        *args: Its arguments, which are sent to the process.
        on_gpu: Which of the two.
    """
    if on_gpu:
        return _measure_on_gpu(prepare, args)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_measure, (prepare, args))


def _measure(prepare: Callable[..., Callable[[], Any]], args: tuple) -> int:
    before = _status('VmRSS')
    work = prepare(*args)
    Path('/proc/self/clear_refs').write_text('5')  # the peak is measured anew from here
    for _ in range(_STEPS):
        work()
    return _status('VmHWM') - before


def _measure_on_gpu(prepare: Callable[..., Callable[[], Any]], args: tuple) -> int:
    gc.collect()
    before = torch.cuda.memory_allocated()
    work = prepare(*args)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_STEPS):
        work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status(name: str) -> int:
    lines = Path(f'/proc/{os.getpid()}/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{name}:'))
