"""Fixtures of the whole set."""

import os
from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import init_default_scope

# No test needs the network: an attempt fails at once instead of being repeated for minutes.
os.environ.setdefault('HF_HUB_OFFLINE', '1')


@pytest.fixture(autouse=True)
def _quiet_start() -> Iterator[None]:
    """One thread, MMPretrain's registry scope, and the same random numbers for each test."""
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    yield
