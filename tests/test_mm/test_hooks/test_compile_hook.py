"""Training with a compiled ``forward(mode='loss')``."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS, MODELS
from torch import Tensor, nn
from torch._dynamo.backends.registry import register_backend
from torch._dynamo.utils import counters

from tests.helpers import CLASSES, config, distilled, preprocessor, timm_teacher


@MODELS.register_module(force=True)
class OneConvolution(nn.Sequential):
    """A backbone that is compiled at once."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


STUDENT = dict(
    type='ImageClassifier',
    backbone=dict(type='OneConvolution'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=8),
    data_preprocessor=preprocessor(),
)
# No drop of images: the last batch is smaller.
DATA = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='RandomImages', count=10, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
)


@HOOKS.register_module(force=True)
class NoteCompiling(Hook):
    """The graphs compiled up to the end of each epoch, the breaks in each epoch, the losses of each iteration."""

    def before_train(self, runner: Any) -> None:
        torch._dynamo.reset()
        counters.clear()
        self.graphs: list[int] = []
        self.breaks: list[int] = []
        self.losses: list[dict] = []

    def after_train_iter(self, runner: Any, *args: Any, outputs: Any = None, **kwargs: Any) -> None:
        self.losses.append({name: float(value.detach()) for name, value in outputs.items()})

    def after_train_epoch(self, runner: Any) -> None:
        self.graphs.append(counters['stats']['unique_graphs'])
        self.breaks.append(sum(counters['graph_break'].values()))
        counters['graph_break'].clear()


def _train(model: dict, folder: Path, *hooks: dict, epochs: int = 2, **options: Any) -> tuple[Runner, Any]:
    options = {'train_dataloader': DATA, 'train_cfg': dict(by_epoch=True, max_epochs=epochs), **options}
    runner = Runner.from_cfg(config(model, folder, custom_hooks=[dict(type='NoteCompiling'), *hooks], **options))
    runner.train()
    return runner, next(hook for hook in runner.hooks if isinstance(hook, NoteCompiling))


def _assert_close(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b) and a[0].keys() == b[0].keys()
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize('kind', ['plain', 'KDLoss', 'FNKDLoss', 'mixup'])
def test_one_graph_a_size_of_batch_and_the_numbers_of_eager_training(kind: str, tmp_path: Path) -> None:
    model: dict = copy.deepcopy(STUDENT)
    if kind == 'mixup':
        model['train_cfg'] = dict(augments=[dict(type='Mixup', alpha=0.8)])
    if kind != 'plain':
        loss = dict(type='FNKDLoss', tau=2.0) if kind == 'FNKDLoss' else dict(type='KDLoss')
        model = distilled(model, timm_teacher(tmp_path), loss)
    _, eager = _train(model, tmp_path / 'eager')
    runner, found = _train(model, tmp_path / 'compiled', dict(type='CompileHook', backend='eager'))
    _assert_close(found.losses, eager.losses)
    assert eager.graphs == [0, 0]
    assert found.graphs == [2, 2] and found.breaks == [0, 0]
    assert 'forward' not in vars(runner.model)


def test_compiled_once_tau_is_fixed(tmp_path: Path) -> None:
    """Its first 20 batches are read on the host, which would break the graph."""
    model = distilled(STUDENT, timm_teacher(tmp_path), dict(type='FNKDLoss'))
    data = dict(DATA, dataset=dict(type='RandomImages', count=16, pipeline=[dict(type='PackInputs')]))
    hook = dict(type='CompileHook', backend='eager')
    _, found = _train(model, tmp_path / 'run', hook, epochs=7, train_dataloader=data)
    assert found.graphs == [0] * 5 + [1] * 2 and found.breaks == [0] * 7


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('c++') is None and shutil.which('g++') is None, reason='no C++ compiler')
@pytest.mark.parametrize('soft_loss', [dict(type='KDLoss'), dict(type='FNKDLoss', tau=2.0)])
@pytest.mark.parametrize('warmup', [0.0, 1.0])
def test_both_losses_reach_the_student_when_really_compiled(soft_loss: dict, warmup: float, tmp_path: Path) -> None:
    """The statistics for the log, which have no gradient, take none away; also where a warm-up breaks the graph."""
    model = distilled(STUDENT, timm_teacher(tmp_path), soft_loss, warmup=warmup)
    _, eager = _train(model, tmp_path / 'eager')
    _, found = _train(model, tmp_path / 'compiled', dict(type='CompileHook'))
    assert found.graphs[1] > 0
    _assert_close(found.losses, eager.losses)


def _broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError('no C++ compiler')


def test_where_compiling_fails_it_trains_in_eager_mode(tmp_path: Path) -> None:
    register_backend(_broken, name='broken')
    model = distilled(STUDENT, timm_teacher(tmp_path))
    _, eager = _train(model, tmp_path / 'eager')
    runner, found = _train(model, tmp_path / 'run', dict(type='CompileHook', backend='broken'))
    assert found.losses == eager.losses and 'forward' not in vars(runner.model)
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert log.count('no C++ compiler') == 1
