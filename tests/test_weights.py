"""Reading checkpoints: weights always, nothing else that runs, and no more memory than the file suggests."""

import argparse
import collections
import random
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.weights import Foreign, UnreadableCheckpointError, load_weights, read_checkpoint, read_state_dict
from tests.helpers import assert_same_weights, build, vit
from tests.hostile import archive, broken_files, executing, spliced, text, wasteful, write

WEIGHTS = dict(a=torch.ones(2), b=torch.arange(6).reshape(2, 3).T)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_reads_what_torch_reads(protocol: int, zipped: bool, tmp_path: Path) -> None:
    model = timm.create_model('test_resnet').half()
    state = model.state_dict()
    stored = {
        'state_dict': state,
        'shared': [state['fc.weight'][1:], state['fc.weight']],
        'parameter': nn.Parameter(torch.ones(2, requires_grad=True)),
        'scalar': torch.tensor(3.5, dtype=torch.float64),
        'empty': torch.zeros(0, 3),
        'expanded': torch.zeros(1, 3).expand(4, 3),
        'types': [torch.ones(3, dtype=kind) for kind in (torch.bool, torch.bfloat16, torch.int8, torch.complex64)],
        'plain': [1, -(2**40), 1.5, None, True, 'ä', b'\xff', (1, (2,)), {3: 'x'}, {1, 2}],
        'size': torch.Size([2, 3]),
        'type': torch.float16,
        'milestones': collections.Counter([3, 3, 5]),
    }
    path = tmp_path / 'x.pth'
    torch.save(stored, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    assert_same_weights(found['state_dict'], state)
    assert found['state_dict']._metadata == state._metadata
    assert [value.dtype for value in found['types']] == [value.dtype for value in stored['types']]
    for key in ('parameter', 'scalar', 'empty', 'expanded'):
        assert torch.equal(found[key], stored[key]) and found[key].dtype == stored[key].dtype
    assert all(torch.equal(*pair) for pair in zip(found['shared'], stored['shared'], strict=True))
    assert found['shared'][0].data_ptr() - found['shared'][1].data_ptr() == 2 * state['fc.weight'].shape[1]
    for key in ('plain', 'size', 'type', 'milestones'):
        assert found[key] == stored[key]


def test_reads_other_types_of_numbers(tmp_path: Path) -> None:
    kinds = torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.float8_e5m2
    torch.save([torch.zeros(1), *(torch.ones(3).to(kind) for kind in kinds)], tmp_path / 'x.pth')
    torch.save(dict(a=torch.load(tmp_path / 'x.pth')), tmp_path / 'x.pth')
    assert [tuple(map(float, value)) for value in read_checkpoint(tmp_path / 'x.pth')['a']] == [(0,), *[(1, 1, 1)] * 4]


def test_reads_the_files_of_trainers(tmp_path: Path) -> None:
    """timm's, DeiT's and torchvision's trainers store their command line as an object."""
    args = argparse.Namespace(lr=0.1, output=Path('x'))
    torch.save(dict(state_dict=WEIGHTS, args=args, metric=np.float64(71.5), curve=np.eye(2)), tmp_path / 'x.pth')
    found = read_checkpoint(tmp_path / 'x.pth')
    assert_same_weights(read_state_dict(tmp_path / 'x.pth'), WEIGHTS)
    assert isinstance(found['args'], Foreign) and found['args'].name == 'argparse.Namespace'
    assert found['metric'] == 71.5 and type(found['metric']) is float
    assert torch.equal(found['curve'], torch.eye(2, dtype=torch.float64))


def test_tensors_of_a_gpu_are_read_on_the_cpu(tmp_path: Path) -> None:
    records = archive(dict(state_dict=WEIGHTS))
    records['archive/data.pkl'] = records['archive/data.pkl'].replace(text('cpu'), text('cuda:3'))
    write(tmp_path / 'x.pth', records)
    assert b'cuda:3' in (tmp_path / 'x.pth').read_bytes()
    assert_same_weights(read_state_dict(tmp_path / 'x.pth'), WEIGHTS)


@pytest.mark.parametrize('numbers', [np.arange(6.0).reshape(2, 3), np.arange(3, dtype='>i4'), np.array([True])])
def test_arrays_become_tensors(numbers: np.ndarray, tmp_path: Path) -> None:
    torch.save(dict(x=numbers, y=np.asfortranarray(numbers), z=np.array(['a'])), tmp_path / 'x.pth')
    found = read_checkpoint(tmp_path / 'x.pth')
    assert found['x'].tolist() == found['y'].tolist() == numbers.tolist()
    assert isinstance(found['z'], Foreign)


@pytest.mark.parametrize('slot', ['extra', 'state_dict'])
@pytest.mark.parametrize('case', executing(Path()))
def test_nothing_runs(case: str, slot: str, tmp_path: Path) -> None:
    marker = tmp_path / 'it_ran'
    path = spliced(tmp_path / 'x.pth', dict(model=WEIGHTS), slot, executing(marker)[case])
    try:
        assert_same_weights(read_state_dict(path), WEIGHTS)
    except UnreadableCheckpointError as error:
        assert case in ('instance', 'object', 'registered extension', 'short array', 'pointers of an array')
        assert 'x.pth' in str(error) and '\n' not in str(error)
    assert not marker.exists()


@pytest.mark.parametrize(
    'case', [pytest.param(case, marks=pytest.mark.slow) if 'endless objects' in case else case for case in wasteful()]
)
def test_no_more_is_allocated_than_the_file_suggests(case: str, tmp_path: Path) -> None:
    path = spliced(tmp_path / 'x.pth', dict(state_dict=WEIGHTS), 'extra', wasteful()[case])
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    harmless = 'memo', 'long frame', 'many objects', 'key', 'colliding', 'deep key', 'unknown storage', 'empty and'
    readable = case.startswith(harmless)
    try:
        assert_same_weights(read_state_dict(path), WEIGHTS)
        assert readable
    except UnreadableCheckpointError as error:
        assert not readable
        assert 'x.pth' in str(error) and '\n' not in str(error) and len(str(error)) < 500
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6


@pytest.mark.parametrize('case', broken_files(dict(state_dict=WEIGHTS)))
def test_files_at_fault_are_named(case: str, tmp_path: Path) -> None:
    path = tmp_path / 'x.pth'
    broken_files(dict(state_dict=WEIGHTS))[case](path)
    with pytest.raises(UnreadableCheckpointError, match=r'x\.pth') as caught:
        read_state_dict(path)
    assert '\n' not in str(caught.value)


def test_the_fault_is_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / 'model.pth')
    with pytest.raises(UnreadableCheckpointError, match=r'torch\.nn\.modules\.linear\.Linear'):
        read_state_dict(tmp_path / 'model.pth')
    with pytest.raises(UnreadableCheckpointError, match=r'nowhere\.pth does not exist'):
        read_state_dict(tmp_path / 'nowhere.pth')


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('zipped', [True, False])
def test_a_corrupted_file_is_named_or_read(zipped: bool, tmp_path: Path) -> None:
    path, chance = tmp_path / 'flipped.pth', random.Random(0)
    torch.save(dict(state_dict=WEIGHTS), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(500):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(flipped)
        try:
            read_state_dict(path)
        except UnreadableCheckpointError as error:
            assert 'flipped.pth' in str(error) and '\n' not in str(error)


def test_threads_read_at_once(tmp_path: Path) -> None:
    torch.save(dict(state_dict=WEIGHTS, args=argparse.Namespace()), tmp_path / 'x.pth')
    safe = torch.serialization.get_safe_globals()
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.extend(read_state_dict(tmp_path / 'x.pth') for _ in range(25)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 100
    assert torch.serialization.get_safe_globals() == safe


def test_state_dicts_are_found_and_cut_of_their_prefixes(tmp_path: Path) -> None:
    weights = dict(a=torch.ones(2), b=torch.zeros(1))
    wrapped = {f'module.{key}': value for key, value in weights.items()}
    averaged = dict(n_averaged=torch.tensor(3), **wrapped)
    for holding in (weights, wrapped, dict(state_dict=wrapped), dict(model=weights, epoch=3), dict(model_ema=averaged)):
        torch.save(holding, tmp_path / 'file.pth')
        found = read_state_dict(tmp_path / 'file.pth')
        assert_same_weights({key: found[key] for key in weights}, weights)
    compiled = {f'module._orig_mod.{key}': value for key, value in weights.items()}
    torch.save(dict(state_dict=dict(a=torch.zeros(2)), state_dict_ema=compiled), tmp_path / 'file.pth')
    assert_same_weights(read_state_dict(tmp_path / 'file.pth'), weights)
    safetensors.torch.save_file(weights, tmp_path / 'file.safetensors')
    assert_same_weights(read_state_dict(tmp_path / 'file.safetensors'), weights)


def test_a_child_of_the_name_of_a_prefix_keeps_it(tmp_path: Path) -> None:
    weights = {'module.a': torch.ones(2), 'head.a': torch.zeros(2)}
    torch.save(weights, tmp_path / 'file.pth')
    assert_same_weights(read_state_dict(tmp_path / 'file.pth'), weights)


def test_weights_that_do_not_fit_are_counted() -> None:
    own = timm.create_model('test_resnet', num_classes=3)
    other = timm.create_model('test_resnet', num_classes=5).state_dict()
    with pytest.raises(SetupError, match=r'2 of another shape \(fc.weight is \(5, '):
        load_weights(own, other, 'a model and a file')
    del other['conv1.0.weight']
    other['extra'] = torch.zeros(1)
    with pytest.raises(SetupError, match=r'1 missing \(conv1\.0\.weight\).*1 unknown \(extra\)'):
        load_weights(own, other, 'a model and a file')


@pytest.mark.parametrize('key', ['n_averaged', 'total_ops', 'conv1.0.total_params', 'ema_conv1_0_weight'])
def test_counters_and_averages_beside_weights_are_passed_over(key: str) -> None:
    own, other = (timm.create_model('test_resnet', num_classes=3) for _ in range(2))
    load_weights(own, {**other.state_dict(), key: torch.zeros(1)}, 'a model and a file')
    assert_same_weights(own.state_dict(), other.state_dict())


def test_weights_that_a_models_own_hooks_cannot_take() -> None:
    own = build(vit())
    state = dict(own.state_dict(), **{'backbone.pos_embed': torch.zeros(3)})
    with pytest.raises(SetupError, match=r'a model and a file: the weights do not fit: .* another architecture') as e:
        load_weights(own, state, 'a model and a file')
    assert '\n' not in str(e.value)
