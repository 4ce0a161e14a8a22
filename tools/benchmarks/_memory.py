"""Peak memory of a function; on a CPU it is measured in a new process."""

import gc
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STEPS = 4


def peak_bytes(prepare: Callable[..., Callable[[], Any]], *args: Any, on_gpu: bool = False) -> int:
    """The peak memory of preparing and running a function, without the imported libraries.

    On a CPU it is the peak of resident memory (Linux), on CUDA of the memory allocated since the call. Temporary memory
    of preparing is not counted; memory that stays allocated is.

    Args:
        prepare: A module-level function that returns the function to run.
        *args: The arguments of ``prepare``; they are pickled.
        on_gpu: Whether to measure CUDA memory.
    """
    if on_gpu:
        return _measure_on_gpu(prepare, args)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_measure, (prepare, args))


def _measure(prepare: Callable[..., Callable[[], Any]], args: tuple) -> int:
    before = status('VmRSS')
    work = prepare(*args)
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    for _ in range(_STEPS):
        work()
    return status('VmHWM') - before


def _measure_on_gpu(prepare: Callable[..., Callable[[], Any]], args: tuple) -> int:
    gc.collect()
    before = torch.cuda.memory_allocated()
    work = prepare(*args)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_STEPS):
        work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def status(name: str) -> int:
    """A memory size of this process in bytes, such as ``RssAnon``, which leaves mapped files out (Linux)."""
    lines = Path(f'/proc/{os.getpid()}/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{name}:'))
