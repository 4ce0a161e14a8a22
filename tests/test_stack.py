"""The package where no OpenMMLab stack is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BARE = """
import importlib.util as util, sys
STACK = 'mmengine', 'mmcv', 'mmpretrain'
found = util.find_spec
util.find_spec = lambda name, *rest: None if name in STACK else found(name, *rest)
sys.modules.update(dict.fromkeys(STACK))  # an import of one of them fails
"""

FUNCTIONAL = """
import fnkd_plugin.functional
assert 'timm' not in sys.modules
"""

MODULES = """
import importlib
from fnkd_plugin import losses, timm
from fnkd_plugin._stack import _WITHOUT_STACK
from fnkd_plugin.teachers import CallableTeacher, EnsembleTeacher
for name in _WITHOUT_STACK:
    importlib.import_module(f'fnkd_plugin.{name}')
"""

ENSEMBLE = """
import torch
from torch import nn
from fnkd_plugin.errors import SetupError
from fnkd_plugin.timm import FNKDTask

def model():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

both = EnsembleTeacher([CallableTeacher(model(), [128] * 3, [64] * 3) for _ in range(2)], weights=[1, 2])
task = FNKDTask(model(), both, mean=[0.5] * 3, std=[0.25] * 3)
assert task(torch.randn(2, 3, 32, 32), torch.arange(2))['kd_loss'] > 0
try:
    EnsembleTeacher([dict(type='CallableTeacher')])
except SetupError as error:
    assert 'give the object itself' in str(error), error
else:
    raise AssertionError
"""

REFUSED = """
for statement in (
    'import fnkd_plugin.mm',
    'import fnkd_plugin.mm.checkpoints',
    'import fnkd_plugin.teachers.timm_teacher',
    'from fnkd_plugin import Distiller',
    'from fnkd_plugin.teachers import TimmTeacher',
):
    try:
        exec(statement)
    except ImportError as error:
        assert 'fnkd_plugin[onedl]' in str(error) and 'fnkd_plugin[openmmlab]' in str(error), error
    else:
        raise AssertionError(statement)
"""


def run_bare(code: str) -> subprocess.CompletedProcess:
    """Run Python code in a process that finds no OpenMMLab package."""
    return subprocess.run([sys.executable, '-c', BARE + code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.upstream
def test_what_works_without_and_what_names_the_extra() -> None:
    done = run_bare(FUNCTIONAL + REFUSED + MODULES + ENSEMBLE)
    assert done.returncode == 0, done.stderr
