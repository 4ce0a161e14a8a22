"""Fixtures of the whole set."""

from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def _quiet_start() -> Iterator[None]:
    """One thread, MMPretrain's registry scope, and the same random numbers for each test."""
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    yield
