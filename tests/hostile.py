"""Checkpoints that are made to harm who reads them: each holds a whole checkpoint, and something else."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SLOTS = ('extra', 'meta', 'state_dict', 'optimizer', 'message_hub', 'param_schedulers')
"""Where in a checkpoint the harm is put; in another's place, or beside all."""


def name(module: str, function: str) -> bytes:
    """Pickle's way to name a class or function."""
    return f'c{module}\n{function}\n'.encode()


def text(value: str) -> bytes:
    """A string."""
    data = value.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def call(module: str, function: str, *args: bytes) -> bytes:
    """A call of what is named."""
    return name(module, function) + b'(' + b''.join(args) + b'tR'


def number(value: int) -> bytes:
    """A whole number of any size."""
    data = value.to_bytes(16, 'little', signed=True)
    return b'\x8a' + bytes([len(data)]) + data


def numbers(*values: int) -> bytes:
    """A tuple of whole numbers."""
    return b'(' + b''.join(map(number, values)) + b't'


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4, kind: str = 'FloatStorage'
) -> bytes:
    """A tensor of the storage ``harm``, which holds four floats."""
    storage = b'(' + text('storage') + name('torch', kind) + text('harm') + text('cpu') + number(count) + b'tQ'
    order = call('collections', 'OrderedDict')
    parts = storage, number(offset), numbers(*size), numbers(*stride), b'\x89', order
    return call('torch._utils', '_rebuild_tensor_v2', *parts)


def executing(marker: Path) -> dict[str, bytes]:
    """Pickles that would create ``marker`` by some way to call, build or set something."""
    shell, python = text(f'touch {marker}'), text(f'open({str(marker)!r}, "w")')
    inner = pickle.dumps(_Touch(marker), protocol=2)
    data = b'B' + struct.pack('<I', len(inner)) + inner
    history = name('mmengine.logging.history_buffer', 'HistoryBuffer')
    float64 = call('numpy', 'dtype', text('f8'), b'\x89\x88')
    objects = call('numpy', 'dtype', text('O8'), b'\x89\x88')
    array = call('numpy.core.multiarray', '_reconstruct', name('numpy', 'ndarray'), numbers(0), b'C\x01b')
    system, popen = name('os', 'system'), name('subprocess', 'Popen')
    four = tensor((4,), (1,))
    command = b'](' + text('touch') + text(str(marker)) + b'e'
    compiled = call('builtins', 'compile', python, text('x'), text('exec'))
    return {
        'system': call('posix', 'system', shell),
        'system of os': call('os', 'system', shell),
        'eval': call('builtins', 'eval', python),
        'exec of Python 2': call('__builtin__', 'exec', python),
        'new object': popen + b'(' + command + b't\x81',
        'new object with names': name('subprocess', 'Popen')
        + b']('
        + text('touch')
        + text(str(marker))
        + b'e\x85}\x92',
        'instance': b'(' + shell + b'iposix\nsystem\n',
        'object': b'(' + name('posix', 'system') + shell + b'o',
        'registered extension': b'\x82\x01',
        'stack global': text('posix') + text('system') + b'\x93(' + shell + b'tR',
        'nested pickle': call('pickle', 'loads', data),
        'nested storage': call('torch.storage', '_load_from_bytes', data),
        'nested torch.load': call('torch', 'load', call('io', 'BytesIO', data)),
        'attribute': call('builtins', 'getattr', call('builtins', '__import__', text('os')), text('system'))
        + b'('
        + shell
        + b'tR',
        'partial': call('functools', 'partial', system, shell) + b')R',
        'method caller': call('operator', 'methodcaller', text('system'), shell) + b'(' + name('os', 'sys') + b'tR',
        'type of a tensor': call('torch._tensor', '_rebuild_from_type_v2', system, b'N', b'(' + shell + b't', b'N'),
        'hooks of a parameter': call('torch._utils', '_rebuild_parameter', four, b'\x89', call('os', 'system', shell)),
        'state of a log': history + b')\x81}' + text('_statistics_methods') + b'}' + text('mean') + system + b'ssb',
        'class of a log': history + b'}' + text('mean') + system + b'sb',
        'attributes of a dict': call('collections', 'OrderedDict') + b'}' + text('items') + system + b'sb',
        'pointers': call('numpy', 'ndarray', numbers(1), text('O'), b'C\x08' + b'\x41' * 8),
        'pointers of an array': array + b'(' + number(1) + numbers(1) + objects + b'\x89C\x08' + b'\x41' * 8 + b'tb',
        'pointer of a scalar': call('numpy.core.multiarray', 'scalar', objects, b'C\x08' + b'\x41' * 8),
        'numpy void': call('numpy', 'void', b'C\x08' + b'\x41' * 8),
        'short array': array + b'(' + number(1) + numbers(10**12) + float64 + b'\x89C\x08' + b'\x41' * 8 + b'tb',
        'compiled graph': call('torch.jit', '_unpickle', shell),
        'function': call('types', 'FunctionType', compiled, b'}') + b')R',
        'constructor': call('copyreg', '_reconstructor', name('subprocess', 'Popen'), name('builtins', 'object'), b'N'),
        'placeholder as a container': call('argparse', 'Namespace') + text('a') + b'\x88s(\x88e(\x88\x90',
        'namespace': name('argparse', 'Namespace') + b')\x81}' + text('lr') + number(1) + b'sb',
    }


def wasteful() -> dict[str, bytes]:
    """Pickles that would take all memory, all time, or the interpreter's stack."""
    doubled = b']q\x00' + b''.join(b']q%c(h%ch%ce' % (i, i - 1, i - 1) for i in range(1, 60))
    colliding = b'}(' + b''.join(number(i * (2**61 - 1)) + b'N' for i in range(30_000)) + b'u'
    deep = b'N' + b'\x85' * 200_000
    return {
        'expanded tensor': tensor((10**12,), (0,)),
        'tensor beyond its storage': tensor((10**6,), (1,)),
        'tensor before its storage': tensor((2,), (1,), -10),
        'negative stride': tensor((2,), (-1,), 1),
        'overflowing size': tensor((2**62, 2**62), (0, 0)),
        'endless dimensions': tensor((1,) * 100_000, (0,) * 100_000),
        'empty and endless': tensor((0, 2**62), (1, 1)),
        'storage beyond its record': tensor((4,), (1,), count=2**50),
        'wide type': tensor((4,), (1,), kind='ComplexDoubleStorage'),
        'unknown storage': tensor((4,), (1,), kind='Anything'),
        'many tensors': b'](' + tensor((10**5,), (0,)) * 5_000 + b'e',
        'memo': b'Nr\xff\xff\xff\xff',
        'long bytes': b'\x8e' + struct.pack('<Q', 2**40),
        'long array': b'\x96' + struct.pack('<Q', 2**40),
        'long text': b'\x8d' + struct.pack('<Q', 2**62),
        'long number': b'\x8b' + struct.pack('<i', 2**31 - 1),
        'negative number': b'\x8b' + struct.pack('<i', -1),
        'long frame': b'\x95' + struct.pack('<Q', 2**62) + b'N',
        'doubled lists': doubled,
        'endless list': b']q\x00h\x00a',
        'deep lists': b']' * 200_000 + b'a' * 199_999,
        'deep tuples': deep,
        'deep key': b'}' + deep + b'Ns',
        'deep dicts': (b'}' + text('a')) * 100_000 + b'N' + b's' * 100_000,
        'key of a list': b'}]Ns',
        'keys of a set': b'\x8f(]\x88\x90',
        'colliding keys': colliding,
        'many objects': b'(' + b'}' * 500_000 + b't',
        'endless objects': b'(' + b'}0' * 5_000_000 + b't',
        'underflow': b'0' * 100,
        'no mark': b't',
        'unknown operation': b'\xff',
        'nothing in the memo': b'h\x7f',
    }


class _Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def archive(content: dict[str, Any]) -> dict[str, bytes]:
    """The records of ``torch.save``'s file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as file:
        return {entry: file.read(entry) for entry in file.namelist()}


def write(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write records as ``torch.save`` does."""
    with zipfile.ZipFile(path, 'w', compression) as file:
        for entry, data in records.items():
            file.writestr(entry, data)


def spliced(path: Path, content: dict[str, Any], slot: str, harm: bytes) -> Path:
    """Write ``content`` with ``harm`` under the key ``slot``."""
    records = archive(content)
    data = records['archive/data.pkl']
    records['archive/data.pkl'] = data[:-1] + text(slot) + harm + b's.'
    records['archive/data/harm'] = struct.pack('<4f', 1, 2, 3, 4)
    write(path, records)
    return path


def replaced(content: dict[str, Any], *keys: str, value: Any) -> dict[str, Any]:
    """``content`` with another value at ``keys``."""
    first, *rest = keys
    inner = replaced(content.get(first) or {}, *rest, value=value) if rest else value
    return {**content, first: inner}


def broken_files(content: dict[str, Any]) -> dict[str, Callable[[Path], None]]:
    """Files whose container is at fault."""

    def bomb(path: Path) -> None:
        records = archive(content)
        records['archive/data/0'] = bytes(200_000_000)
        write(path, records, zipfile.ZIP_DEFLATED)

    def overlapping(path: Path) -> None:
        # Many names of one record: each is read from the same bytes.
        tensors = {f'w{i}': torch.full((10_000,), float(i)) for i in range(200)}
        write(path, archive({**content, 'extra': tensors}))
        data = bytearray(path.read_bytes())
        where = data.index(b'PK\x01\x02')
        first = None
        while data[where : where + 4] == b'PK\x01\x02':
            lengths = struct.unpack('<3H', data[where + 28 : where + 34])
            entry = bytes(data[where + 46 : where + 46 + lengths[0]])
            if b'/data/' in entry and struct.unpack('<I', data[where + 20 : where + 24])[0] == 40_000:
                first = first or data[where + 42 : where + 46]
                data[where + 42 : where + 46] = first
                data[where + 20 : where + 28] = struct.pack('<2I', 8_000_000, 8_000_000)
            where += 46 + sum(lengths)
        path.write_bytes(data)

    def cut(share: float) -> Callable[[Path], None]:
        def write_part(path: Path) -> None:
            torch.save(content, path)
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * share)])

        return write_part

    def legacy(path: Path) -> None:
        torch.save(content, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-100])

    return {
        'bomb': bomb,
        'overlapping records': overlapping,
        'first half': cut(0.5),
        'almost whole': cut(0.999),
        'legacy and cut': legacy,
        'empty': lambda path: path.write_bytes(b''),
        'page': lambda path: path.write_bytes(b'<html>not found</html>' * 100),
        'no pickle': lambda path: write(path, {'archive/version': b'3'}),
        'folder': lambda path: path.mkdir(),
        'a number': lambda path: torch.save(3, path),
        'a list': lambda path: torch.save([1], path),
        'a model': lambda path: torch.save(torch.nn.Linear(2, 2), path),
        'no weights': lambda path: torch.save(dict(state_dict={}), path),
    }


def odd_runs(folder: Path) -> dict[str, tuple[tuple[str, ...], Any]]:
    """What a run does not store, or not so: the keys of a checkpoint, and the value there. ``folder`` is another's."""
    code = f'import os\nos.system("touch {folder / "it_ran"}")\n'
    nan = float('nan')
    hub = ('message_hub', 'runtime_info')
    values: dict[tuple[str, ...], list[Any]] = {
        ('meta',): [None, 'config', [1], 3, {}],
        ('meta', 'config'): [code],
        ('meta', 'cfg'): [code],
        ('meta', 'epoch'): ['1', -1, 2**70, nan, 1.5, None, [1], True],
        ('meta', 'iter'): ['1', -1, 2**70, nan, None],
        ('meta', 'seed'): ['1', -1, 2**70, nan, [0]],
        ('meta', 'dataset_meta'): [3, 'x', [1], {'classes': 3}],
        ('meta', 'experiment_name'): [3, '../../x'],
        ('message_hub',): [None, 'x', [1], {}, dict(log_scalars=1, runtime_info=2, resumed_keys=3)],
        ('message_hub', 'log_scalars', 'train/loss'): [
            3,
            'x',
            dict(_fnkd_history_buffer=1),
            dict(_fnkd_history_buffer=1, log='x', count=3, max_length=nan),
        ],
        (*hub, 'best_score'): ['x', None, nan, [1]],
        (*hub, 'best_ckpt'): [str(folder), str(folder / 'thesis.pth'), '../thesis.pth', 3, 'a\0b', ['x']],
        (*hub, 'keep_ckpt_ids'): [['../thesis', '/'], [nan, -1], 'abc', 3, [2**70], [[1]] * 3],
        (*hub, 'tau'): ['x', nan, [1]],
        ('optimizer',): [None, 'x', [1], {}, dict(state={}, param_groups=[]), dict(state=3, param_groups=4)],
        ('optimizer', 'param_groups'): ['x', [1], [{}], [dict(params=[0])], [dict(params='x')]],
        ('optimizer', 'state'): [
            'x',
            [1],
            {0: 3},
            {0: dict(momentum_buffer=torch.zeros(7))},
            {0: dict(momentum_buffer='x')},
            {10**6: {}},
        ],
        ('param_schedulers',): [None, 'x', 3, [1], [{}], [dict(step=3, optimizer=4)], [dict(last_step='x')]],
        ('state_dict',): [None, 'x', [1], {}, {3: torch.zeros(1)}],
        ('ema_state_dict',): ['x', {'module.x': 3}],
    }
    return {f'{".".join(keys)}={value!r:.40}': (keys, value) for keys, found in values.items() for value in found}
