"""Reading and writing checkpoints; what is in a file runs nothing."""

import argparse
import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner import checkpoint as framework
from mmpretrain.registry import HOOKS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.checkpoints import read_checkpoint, to_plain
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.weights import UnreadableCheckpointError
from tests.helpers import assert_same_weights, build, config, timm_student, vit
from tests.test_mm.doors import DOORS, MODEL
from tests.test_mm.test_hooks.runs import run

ONE_EPOCH = dict(train_cfg=dict(by_epoch=True, max_epochs=1))
doors = pytest.mark.parametrize('door', DOORS.values(), ids=DOORS)


class Bomb:
    """Runs a shell command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.marker}',)


def resume(path: Path, folder: Path, **options: Any) -> Any:
    epochs = dict(by_epoch=True, max_epochs=2)
    return run(MODEL, folder, load_from=str(path), resume=True, train_cfg=epochs, **options)


@pytest.mark.parametrize('model', ['TimmClassifier', 'TimmStudent'])
@pytest.mark.upstream
def test_files_are_data_that_timm_reads(model: str, tmp_path: Path) -> None:
    path, marker = tmp_path / 'bomb.pth', tmp_path / 'it_ran'
    torch.save(dict(state_dict=dict(a=torch.zeros(1)), meta=Bomb(marker)), path)
    name = {'TimmClassifier': 'model_name', 'TimmStudent': 'model'}[model]
    with pytest.raises((RuntimeError, SetupError)):
        build({'type': model, name: 'test_resnet', 'checkpoint_path': str(path)})
    assert not marker.exists()


@pytest.mark.parametrize('key', ['config', 'cfg'])
@pytest.mark.upstream
def test_files_are_data_also_where_the_framework_runs_their_config(key: str, tmp_path: Path) -> None:
    path = tmp_path / 'epoch_1.pth'
    marker = tmp_path / 'it_ran'
    run(MODEL, tmp_path, **ONE_EPOCH)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['meta'][key] = f'import os\nos.system("touch {marker}")\n'
    torch.save(checkpoint, path)
    resume(path, tmp_path)
    assert not marker.exists()


@doors
def test_a_missing_file_is_named(door: Callable[[Path, Path], Any], tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r'(there is no file .*|Checkpoint .*)nowhere\.pth'):
        door(tmp_path / 'nowhere.pth', tmp_path / 'run')


@pytest.mark.parametrize('kind', ['pth', 'safetensors'])
@doors
def test_a_truncated_file_is_named(door: Callable[[Path, Path], Any], kind: str, tmp_path: Path) -> None:
    path = tmp_path / f'half.{kind}'
    weights = timm.create_model('test_resnet').state_dict()
    (safetensors.torch.save_file if kind == 'safetensors' else torch.save)(weights, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableCheckpointError, match=f'half.{kind} cannot be read') as caught:
        door(path, tmp_path / 'run')
    assert '\n' not in str(caught.value)


@pytest.mark.upstream
def test_the_framework_reads_the_files_of_trainers(tmp_path: Path) -> None:
    """Stock ``init_cfg=Pretrained`` of a file with an ``argparse.Namespace`` beside the weights."""
    weights = build(MODEL, seed=5).state_dict()
    torch.save(dict(model=weights, args=argparse.Namespace(lr=0.1)), tmp_path / 'x.pth')
    built = build({**MODEL, 'init_cfg': dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))})
    assert_same_weights(built.state_dict(), weights)


def test_tensors_beside_the_weights_are_not_weights(tmp_path: Path) -> None:
    weights = build(MODEL, seed=5).state_dict()
    torch.save(dict(state_dict=weights, random_state=torch.zeros(3)), tmp_path / 'x.pth')
    assert_same_weights(CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))['state_dict'], weights)
    torch.save(dict(weights, epoch=3), tmp_path / 'x.pth')
    assert_same_weights(CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))['state_dict'], weights)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address at which ``tmp_path`` is served."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.mark.parametrize('scheme', ['http', 'torchvision', 'openmmlab'])
@pytest.mark.upstream
def test_downloads_are_data(scheme: str, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, weights = tmp_path / 'it_ran', dict(a=torch.ones(2))
    torch.save(dict(state_dict=weights, harm=Bomb(marker)), tmp_path / 'x.pth')
    for name in ('get_torchvision_models', 'get_external_models'):
        monkeypatch.setattr(framework, name, lambda: dict(model=f'{served}/x.pth'))
    source = f'{served}/x.pth' if scheme == 'http' else f'{scheme}://model'
    assert_same_weights(dict(CheckpointLoader.load_checkpoint(source)['state_dict']), weights)
    assert not marker.exists()
    with pytest.raises(UnreadableCheckpointError, match=r'nowhere'):
        read_checkpoint(source.replace('x.pth', 'nowhere').replace('//model', '//nowhere'))


def test_weights_fit_as_the_models_own_hooks_make_them(tmp_path: Path) -> None:
    """Position embeddings are resized by a hook of the model's while it loads."""
    model = build(vit())
    torch.save(model.state_dict(), tmp_path / 'small.pth')
    larger = vit(backbone=dict(vit()['backbone'], img_size=48))
    teacher = MMPretrainTeacher(config(larger, tmp_path), tmp_path / 'small.pth')
    assert teacher.model.backbone.pos_embed.shape == (1, 37, 16)
    assert torch.equal(teacher.model.head.layers.head.weight, model.head.layers.head.weight)


@HOOKS.register_module(force=True)
class StoresObjects(Hook):
    """Puts into the message hub and the checkpoint what hooks of others may."""

    def after_train_epoch(self, runner: Any) -> None:
        runner.message_hub.update_info('best', np.float64(0.5))
        runner.message_hub.update_info('curve', np.arange(3.0))
        runner.message_hub.update_info('folder', Path('somewhere'))
        runner.message_hub.update_info('names', np.array(['a', 'b']))
        runner.message_hub.update_info('size', torch.Size([2, 3]))


@pytest.mark.upstream
def test_our_checkpoints_are_plain_data_and_logs_come_back(tmp_path: Path) -> None:
    student = timm_student()
    hooks = [dict(type='EMAHook'), dict(type='StoresObjects')]
    scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3), dict(type='CosineAnnealingLR')]
    options = dict(custom_hooks=hooks, param_scheduler=scheduler)
    first = run(student, tmp_path, **ONE_EPOCH, **options)
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['message_hub']['runtime_info']['best'] == 0.5
    assert type(checkpoint['state_dict']['conv1.0.weight']) is torch.Tensor
    timm.create_model('test_resnet', num_classes=4, checkpoint_path=str(path))

    second = Runner.from_cfg(config(student, tmp_path, load_from=str(path), resume=True, **options))
    second._train_loop = second.build_train_loop(second._train_loop)
    second.optim_wrapper = second.build_optim_wrapper(second.optim_wrapper)
    second.param_schedulers = second.build_param_scheduler(second.param_schedulers)
    second.call_hook('before_run')
    second.load_or_resume()
    logs = first.message_hub.log_scalars
    assert set(logs) == set(second.message_hub.log_scalars)
    for key, buffer in logs.items():
        found = second.message_hub.log_scalars[key]
        assert isinstance(found, HistoryBuffer)
        assert all(np.array_equal(a, b) for a, b in zip(found.data, buffer.data, strict=True))
        assert found.max_length == buffer.max_length
        assert found.mean(2) == buffer.mean(2)
    assert second.message_hub.get_info('best') == 0.5


@pytest.mark.upstream
def test_a_stock_checkpoint_resumes(tmp_path: Path) -> None:
    # Saved without our hook: its logs are numpy arrays inside objects.
    off = dict(default_hooks=dict(safe_checkpoint=None, checkpoint=dict(type='CheckpointHook', interval=1)))
    run(MODEL, tmp_path, **ONE_EPOCH, **off)
    with pytest.raises(Exception, match=r'weights_only|HistoryBuffer|Weights only'):
        torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    resumed = resume(tmp_path / 'epoch_1.pth', tmp_path)
    assert resumed.epoch == 2
    assert len(resumed.message_hub.log_scalars['train/loss'].data[0]) == 8


def test_to_plain_keeps_what_it_can() -> None:
    class Text(str):
        pass

    plain = to_plain(
        Config(dict(a=[np.int64(3), (1.5, None)], b=Text('b'), c={1, 2}, d=object(), e=np.array(['x'])))._cfg_dict
    )
    assert plain == dict(a=[3, (1.5, None)], b='b', c={1, 2}, e=['x'])
    assert type(plain) is dict
    assert type(plain['b']) is str


def test_a_named_tuple_becomes_a_tuple() -> None:
    from collections import namedtuple

    assert to_plain(namedtuple('Pair', 'a b')(1, 2)) == (1, 2)


def test_one_checkpoint_is_kept_if_requested(tmp_path: Path) -> None:
    once = dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)))
    run(MODEL, tmp_path, train_cfg=dict(by_epoch=True, max_epochs=3), **once)
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['epoch_3.pth']
