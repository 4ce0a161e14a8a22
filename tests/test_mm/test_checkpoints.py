"""Reading and writing checkpoints; what is in a file runs nothing."""

import os
import random
from collections.abc import Callable
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
from mmpretrain import get_model
from mmpretrain.registry import HOOKS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.checkpoints import guard_framework_loaders, to_plain
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.mm.models import TimmStudent
from fnkd_plugin.teachers import TimmTeacher
from fnkd_plugin.weights import (
    UnreadableCheckpointError,
    load_weights,
    read_state_dict,
)
from tests.helpers import assert_same_weights, build, config, resnet, timm_checkpoint, timm_student, vit
from tests.test_mm.test_hooks.runs import run

MODEL = resnet()
ONE_EPOCH = dict(train_cfg=dict(by_epoch=True, max_epochs=1))


class Bomb:
    """Runs a shell command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.marker}',)


def load_from(path: Path, folder: Path) -> Any:
    return run(MODEL, folder, load_from=str(path), **ONE_EPOCH)


def resume(path: Path, folder: Path) -> Any:
    return run(MODEL, folder, load_from=str(path), resume=True, train_cfg=dict(by_epoch=True, max_epochs=2))


def pretrained(path: Path, folder: Path) -> Any:
    return build({**MODEL, 'init_cfg': dict(type='Pretrained', checkpoint=str(path))})


def pretrained_backbone(path: Path, folder: Path) -> Any:
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    return build({**MODEL, 'backbone': {**MODEL['backbone'], 'init_cfg': init_cfg}})


DOORS: dict[str, Callable[[Path, Path], Any]] = {
    'timm teacher': lambda path, folder: TimmTeacher('test_resnet', checkpoint=path),
    'mmpretrain teacher': lambda path, folder: MMPretrainTeacher(config(MODEL, folder), checkpoint=path),
    'timm student': lambda path, folder: TimmStudent('test_resnet', checkpoint=path),
    'load_from': load_from,
    'resume': resume,
    'init_cfg': pretrained,
    'init_cfg of the backbone': pretrained_backbone,
    'get_model': lambda path, folder: get_model(config(MODEL, folder), pretrained=str(path)),
    'read_state_dict': lambda path, folder: read_state_dict(path),
}
doors = pytest.mark.parametrize('door', DOORS.values(), ids=DOORS)


@doors
@pytest.mark.upstream
def test_files_are_data(door: Callable[[Path, Path], Any], tmp_path: Path) -> None:
    path, marker = tmp_path / 'bomb.pth', tmp_path / 'it_ran'
    torch.save(dict(state_dict=dict(a=torch.zeros(1)), meta=Bomb(marker)), path)
    with pytest.raises(UnreadableCheckpointError, match=r'bomb.pth is not plain data') as caught:
        door(path, tmp_path / 'run')
    assert not marker.exists()
    assert '\n' not in str(caught.value)


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


@pytest.mark.upstream
def test_files_are_data_whatever_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A usual remedy for upstream on torch >= 2.6.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    path, marker = tmp_path / 'bomb.pth', tmp_path / 'it_ran'
    torch.save(Bomb(marker), path)
    with pytest.raises(UnreadableCheckpointError, match='not plain data'):
        read_state_dict(path)
    assert not marker.exists()
    assert read_state_dict(timm_checkpoint(tmp_path))
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'


@doors
def test_a_missing_file_is_named(door: Callable[[Path, Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UnreadableCheckpointError, match=r'nowhere.pth does not exist'):
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


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'<html>not found</html>' * 100])
def test_a_file_that_is_no_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / 'wrong.pth'
    path.write_bytes(content)
    with pytest.raises(UnreadableCheckpointError, match=r'wrong.pth'):
        read_state_dict(path)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('zipped', [True, False])
def test_a_corrupted_file_is_named_or_read(zipped: bool, tmp_path: Path) -> None:
    """The reader itself fails in as many ways as there are bytes to flip."""
    path, chance = tmp_path / 'flipped.pth', random.Random(0)
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(flipped)
        try:
            read_state_dict(path)
        except UnreadableCheckpointError as error:
            assert 'flipped.pth' in str(error) and '\n' not in str(error)


@pytest.mark.parametrize('log', [dict(log=['x']), dict(log=torch.zeros(2), count=torch.zeros(1)), {}])
def test_logs_of_another_form_are_left_as_they_are(log: dict, tmp_path: Path) -> None:
    stored = dict(_fnkd_history_buffer=1, **log)
    weights = dict(a=torch.zeros(1))
    torch.save(dict(state_dict=weights, message_hub=dict(log_scalars=dict(loss=stored))), tmp_path / 'log.pth')
    found = CheckpointLoader.load_checkpoint(str(tmp_path / 'log.pth'))['message_hub']['log_scalars']['loss']
    assert list(found) == list(stored)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCheckpointError, match=tmp_path.name):
        read_state_dict(tmp_path)


@pytest.mark.parametrize('holding', [{}, [1], dict(state_dict={}), 3])
def test_a_checkpoint_without_weights_is_named(holding: Any, tmp_path: Path) -> None:
    torch.save(holding, tmp_path / 'empty.pth')
    with pytest.raises(UnreadableCheckpointError, match=r'empty.pth holds no state_dict'):
        read_state_dict(tmp_path / 'empty.pth')


def test_every_scheme_is_guarded_once() -> None:
    before = dict(CheckpointLoader._schemes)
    assert {'', 'http://', 'https://', 'torchvision://', 'openmmlab://', 'mmcls://'} <= set(before)
    assert all(loader._fnkd_guarded for loader in before.values())
    guard_framework_loaders()
    assert CheckpointLoader._schemes == before


def test_a_file_behind_a_scheme_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / 'it_ran'
    torch.save(Bomb(marker), tmp_path / 'bomb.pth')

    def load_from_elsewhere(filename: str, map_location: Any = None) -> Any:
        return torch.load(tmp_path / 'bomb.pth', weights_only=False)

    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme('elsewhere://', load_from_elsewhere)
    guard_framework_loaders()
    with pytest.raises(UnreadableCheckpointError, match='elsewhere://bomb is not plain data'):
        CheckpointLoader.load_checkpoint('elsewhere://bomb')
    assert not marker.exists()


@pytest.mark.parametrize('scheme', ['', 'elsewhere://'])
@pytest.mark.parametrize('target', [(HistoryBuffer, '__init__'), (torch.Size, 'mean'), (HistoryBuffer, 'update')])
def test_a_file_may_not_look_up_attributes(
    target: tuple, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The maintained fork lets it, since the logs in stock checkpoints do.
    def load_from_elsewhere(filename: str, map_location: Any = None) -> Any:
        load = getattr(framework, '_safe_torch_load', torch.load)
        return load(filename.removeprefix(scheme), map_location=map_location)

    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme('elsewhere://', load_from_elsewhere)
    guard_framework_loaders()

    class Reach:
        def __reduce__(self) -> tuple:
            return getattr, target

    torch.save(dict(reach=Reach()), tmp_path / 'reach.pth')
    with pytest.raises(UnreadableCheckpointError, match='getattr'):
        read_state_dict(f'{scheme}{tmp_path / "reach.pth"}')
    if hasattr(framework, 'get_torch_safe_globals'):
        assert getattr in framework.get_torch_safe_globals(), 'as it was before'


def test_the_reason_is_named(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path), tmp_path / 'bomb.pth')
    with pytest.raises(UnreadableCheckpointError, match=r'GLOBAL posix\.system'):
        read_state_dict(tmp_path / 'bomb.pth')


def test_state_dicts_are_found_and_cut_of_their_prefixes(tmp_path: Path) -> None:
    weights = dict(a=torch.ones(2))
    wrapped = {'module.a': weights['a']}
    for holding in (weights, wrapped, dict(state_dict=wrapped), dict(model=weights, epoch=3)):
        torch.save(holding, tmp_path / 'file.pth')
        assert_same_weights(read_state_dict(tmp_path / 'file.pth'), weights)
    compiled = {'_orig_mod.a': weights['a']}
    torch.save(dict(state_dict=dict(a=torch.zeros(2)), state_dict_ema=compiled), tmp_path / 'file.pth')
    assert_same_weights(read_state_dict(tmp_path / 'file.pth'), weights)
    safetensors.torch.save_file(weights, tmp_path / 'file.safetensors')
    assert_same_weights(read_state_dict(tmp_path / 'file.safetensors'), weights)


def test_weights_that_do_not_fit_are_counted() -> None:
    own = timm.create_model('test_resnet', num_classes=3)
    other = timm.create_model('test_resnet', num_classes=5).state_dict()
    with pytest.raises(SetupError, match=r'2 of another shape \(fc.weight is \(5, '):
        load_weights(own, other, 'a model and a file')
    del other['conv1.0.weight']
    other['extra'] = torch.zeros(1)
    with pytest.raises(SetupError, match=r'1 missing \(conv1\.0\.weight\).*1 unknown \(extra\)'):
        load_weights(own, other, 'a model and a file')


def test_weights_fit_as_the_models_own_hooks_make_them(tmp_path: Path) -> None:
    """Position embeddings are resized by a hook of the model's while it loads."""
    model = build(vit())
    torch.save(model.state_dict(), tmp_path / 'small.pth')
    larger = vit(backbone=dict(vit()['backbone'], img_size=48))
    teacher = MMPretrainTeacher(config(larger, tmp_path), tmp_path / 'small.pth')
    assert teacher.model.backbone.pos_embed.shape == (1, 37, 16)
    assert torch.equal(teacher.model.head.layers.head.weight, model.head.layers.head.weight)


def test_weights_that_a_models_own_hooks_cannot_take() -> None:
    own = build(vit())
    state = dict(own.state_dict(), **{'backbone.pos_embed': torch.zeros(3)})
    with pytest.raises(SetupError, match=r'a model and a file: the weights do not fit: .* another architecture') as e:
        load_weights(own, state, 'a model and a file')
    assert '\n' not in str(e.value)


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


def test_two_checkpoints_are_kept_where_one_is_asked_for(tmp_path: Path) -> None:
    # MMEngine removes the older before it writes the newer; a run killed in between would have none.
    once = dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)))
    run(MODEL, tmp_path, train_cfg=dict(by_epoch=True, max_epochs=3), **once)
    assert sorted(p.name for p in tmp_path.glob('epoch_*.pth')) == ['epoch_2.pth', 'epoch_3.pth']
