"""Skips this folder where it cannot run."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.test_tools.conftest import tools  # noqa: F401


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if os.environ.get('FNKD_TEST_CUDA') != '1' or not torch.cuda.is_available():
        pytest.skip('needs a GPU and FNKD_TEST_CUDA=1: make test-cuda')


@pytest.fixture(autouse=True)
def _deterministic_afterwards() -> Iterator[None]:
    """A run may make algorithms deterministic; the next test decides for itself."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
