"""Runs ``kernel_checks.py``, in processes of their own: Triton reads whether to interpret when it is imported."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fnkd_plugin.losses import scaled_cross_entropy

CHECKS = Path(__file__).with_name('kernel_checks.py')

pytestmark = pytest.mark.skipif(find_spec('triton') is None, reason='Triton is not installed')


def run_checks(interpret: bool, marker: str) -> None:
    """All checks of a kind pass, and there are some."""
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '--noconftest', '-p', 'no:cacheprovider', '-m', marker, str(CHECKS)],
        env=os.environ | {'TRITON_INTERPRET': str(int(interpret)), 'OMP_NUM_THREADS': '1'},
        cwd=CHECKS.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r'(\d+) passed', done.stdout)
    assert passed and int(passed[1]) >= 30, done.stdout[-2000:]


@pytest.mark.parametrize(
    'marker', ['not slow', pytest.param('slow', marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_under_the_interpreter(marker: str) -> None:
    run_checks(True, marker)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is CUDA')
def test_without_a_working_triton_torch_operators_are_used() -> None:
    with pytest.warns(UserWarning, match='Triton does not work here'):
        assert scaled_cross_entropy._fused_cross_entropy.__wrapped__() is None
