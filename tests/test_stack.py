"""The package where no OpenMMLab stack is installed."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS

from fnkd_plugin.teachers import EnsembleTeacher
from tests.helpers import timm_teacher

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
import importlib, pkgutil, fnkd_plugin
from fnkd_plugin import Prediction, losses, taxonomy, teachers, timm
from fnkd_plugin.teachers import CallableTeacher, EnsembleTeacher, HuggingFaceTeacher, TimmTeacher
STACK_SIDE = 'mm', 'cache', 'analysis', 'cli'
found = [name for _, name, _ in pkgutil.walk_packages(fnkd_plugin.__path__, onerror=lambda name: None)]
free = [name for name in found if name not in STACK_SIDE]
assert set(free) >= {'functional', 'losses', 'taxonomy', 'teachers', 'timm', 'readers'}, free
for name in free:
    module = importlib.import_module(f'fnkd_plugin.{name}')
    for _, part, _ in pkgutil.iter_modules(getattr(module, '__path__', [])):
        importlib.import_module(f'fnkd_plugin.{name}.{part}')
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
for wrong, fact in ((lambda: EnsembleTeacher([dict(type='CallableTeacher')]), 'dict'),
                    (lambda: taxonomy.taxonomy_of('cub'), 'MMPretrain')):
    try:
        wrong()
    except SetupError as error:
        assert fact in str(error), error
    else:
        raise AssertionError(fact)
"""

REFUSED = """
for statement in (
    'import fnkd_plugin.mm',
    'import fnkd_plugin.mm.checkpoints',
    'from fnkd_plugin import Distiller',
    'from fnkd_plugin import distill',
    'import fnkd_plugin; fnkd_plugin.CachedTeacher',
):
    try:
        exec(statement)
    except ImportError as error:
        assert 'fnkd_plugin[onedl]' in str(error) and 'fnkd_plugin[openmmlab]' in str(error), error
    else:
        raise AssertionError(statement)
import fnkd_plugin
assert not hasattr(fnkd_plugin, 'no_such_name')
"""


def run_bare(code: str) -> subprocess.CompletedProcess:
    """Run Python code in a process that finds no OpenMMLab package."""
    return subprocess.run([sys.executable, '-c', BARE + code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.upstream
def test_without_a_stack() -> None:
    done = run_bare(FUNCTIONAL + REFUSED + MODULES + ENSEMBLE)
    assert done.returncode == 0, done.stderr


def test_messages_reach_the_current_logger_of_mmengine(tmp_path: Path) -> None:
    MMLogger.get_instance('test_messages', log_file=str(tmp_path / 'log'))
    logging.getLogger('fnkd_plugin.losses.fnkd_loss').info('tau is 3')
    logging.getLogger('fnkd_plugin').debug('not this')
    text = (tmp_path / 'log').read_text()
    assert text.count('tau is 3') == 1 and 'not this' not in text


def test_configs_build_the_members_of_an_ensemble(tmp_path: Path) -> None:
    teacher = MODELS.build(dict(type='EnsembleTeacher', teachers=[timm_teacher(tmp_path)] * 2))
    assert isinstance(teacher, EnsembleTeacher) and len(teacher.teachers) == 2


REGISTERED = """
import fnkd_plugin
from mmpretrain.registry import DATASETS, HOOKS, MODELS, TRANSFORMS
for registry, names in (
    (MODELS, 'Distiller DistillHead MMPretrainTeacher TimmTeacher CachedTeacher EnsembleTeacher CallableTeacher '
             'HuggingFaceTeacher TimmStudent CIFARResNet FNKDLoss KDLoss DISTLoss LSRLoss ALSRLoss'),
    (HOOKS, 'ReproducibleHook SafeCheckpointHook CheckClassesHook CheckWeightsHook SummaryHook ChannelsLastHook '
            'CompileHook EvaluateTeacherHook SavePredictionsHook'),
    (DATASETS, 'CUB2010 Digits FlippedLabels'),
):
    missing = [name for name in names.split() if name not in registry.module_dict]
    assert not missing, missing
assert fnkd_plugin.presets.fnkd  # _base_ of config files
"""


@pytest.mark.upstream
def test_one_import_registers_everything() -> None:
    done = subprocess.run([sys.executable, '-c', REGISTERED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
