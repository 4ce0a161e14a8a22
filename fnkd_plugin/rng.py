"""Isolation from the global random generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore the states of torch's (CPU and current GPU), NumPy's and Python's random generators on exit.

    Does nothing under ``torch.compile``: compiled graphs have their own random states, and reading the global ones
    would break the graph.
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
