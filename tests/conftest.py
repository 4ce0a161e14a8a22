"""Fixtures of the whole set."""

import gc
import multiprocessing
from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import init_default_scope
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter


@pytest.fixture(autouse=True)
def _quiet_start() -> Iterator[None]:
    """One thread, MMPretrain's registry scope, and the same random numbers for each test."""
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    yield
    _end_loaders()


def _end_loaders() -> None:
    """End the processes of data loaders that a test leaves behind.

    When the garbage collector does it, in some later test, torch waits 5 s for each.
    """
    if multiprocessing.active_children():
        # By type(): isinstance follows weak references, also dead ones.
        for loader in [each for each in gc.get_objects() if type(each) is _MultiProcessingDataLoaderIter]:
            loader._shutdown_workers()
