"""Keeping what we add away from the random streams of the student's training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore torch's (CPU and current accelerator), numpy's and Python's generators on leaving.

    Under ``torch.compile`` nothing is done: compiled graphs carry random states of their own, and reading
    the global ones would break the graph.
    """
    if torch.compiler.is_compiling():
        yield
        return
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
