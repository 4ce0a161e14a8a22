"""Checkpoints as data: whatever a file names, nothing in it runs and nothing foreign is built.

The reader knows torch's functions that rebuild tensors, plain containers, numbers and strings. Every other class or
function in a file, such as the ``argparse.Namespace`` that timm's trainer stores beside its weights, becomes a
:class:`Foreign`. It keeps no state outside of the call, so that threads may read at once, and it allocates no more
than the file's own size suggests.
"""

import io
import math
import operator
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from urllib.parse import urlparse

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError

TIMM_EMA = ('state_dict_ema', 'model_ema')
"""Where checkpoints of timm, DeiT and torchvision keep averaged weights."""

_NOT_WEIGHTS = ('n_averaged', 'total_ops', 'total_params')
_SHAPE = r'torch\.Size\(\[(.*?)\]\)'
_MISMATCH = re.compile(rf'size mismatch for (\S+): .*? {_SHAPE} .*? {_SHAPE}')


class UnreadableCheckpointError(SetupError):
    """A checkpoint that is missing, truncated, or holds no weights."""


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """Read all that a checkpoint of MMEngine, timm or plain torch holds; tensors are on the CPU.

    Args:
        source: A path, or a URL, which is downloaded into torch's hub folder.

    Returns:
        Numbers, strings, tensors, and dicts, lists, tuples and sets of these. NumPy's numbers become Python's and its
        arrays tensors; anything else is a :class:`Foreign`.

    Raises:
        UnreadableCheckpointError: If the file is missing, truncated, no checkpoint, or larger in memory than on disk.
    """
    path = download(str(source)) if str(source).startswith(('http://', 'https://')) else os.path.expanduser(source)
    if not os.path.isfile(path):
        fault = 'is not a file' if os.path.exists(path) else 'does not exist'
        raise UnreadableCheckpointError(f'Checkpoint {source} {fault}.')
    if str(path).endswith('.safetensors'):
        return _described(source, lambda: safetensors.torch.load_file(path))
    return read_stream(lambda: open(path, 'rb'), source)


def read_stream(opened: Callable[[], BinaryIO], source: str | Path) -> dict[str, Any]:
    """As :func:`read_checkpoint`, from what ``opened()`` gives; ``source`` names it in errors."""

    def read() -> Any:
        with opened() as file:
            return _read(file)

    content = _described(source, read)
    if isinstance(content, dict):
        return content
    kind = content.name if isinstance(content, Foreign) else type(content).__name__
    raise UnreadableCheckpointError(f'Checkpoint {source} holds no state_dict, but a {kind}; save its state_dict.')


def _described(source: str | Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # a damaged file fails in as many ways as there are bytes to get wrong
        raise UnreadableCheckpointError(
            f'Checkpoint {source} cannot be read ({_reason(error)}); it may be truncated, or not a checkpoint.'
        ) from error


def download(url: str, folder: str | None = None) -> str:
    """The path of the file at ``url`` in ``folder``, by default torch's hub folder; downloaded unless it is there.

    Raises:
        UnreadableCheckpointError: If it cannot be downloaded.
    """
    folder = folder or os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(url).path))
    if not os.path.exists(path):
        try:
            os.makedirs(folder, exist_ok=True)
            torch.hub.download_url_to_file(url, path, progress=False)
        except OSError as error:
            raise UnreadableCheckpointError(f'Checkpoint {url} cannot be downloaded ({_reason(error)}).') from error
    return path


def _reason(error: BaseException) -> str:
    return ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__


def read_state_dict(source: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint: :func:`find_state_dict` of :func:`read_checkpoint`.

    Raises:
        UnreadableCheckpointError: If the file cannot be read, or holds no weights.
    """
    return find_state_dict(read_checkpoint(source), source)


def find_state_dict(checkpoint: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The weights in what :func:`read_checkpoint` gave.

    Of several sets the EMA weights come first, as timm reads its own. Prefixes of DDP, ``AveragedModel`` and
    ``torch.compile`` are cut where all keys have them.

    Raises:
        UnreadableCheckpointError: If there are none.
    """
    names = (*TIMM_EMA, 'state_dict', 'model')
    sets = [part for name in names if isinstance(part := checkpoint.get(name), dict)]
    state = next(filter(None, map(_tensors, [*sets, checkpoint])), None)
    if state is None:
        raise UnreadableCheckpointError(f'Checkpoint {source} holds no state_dict.')
    for prefix in ('module.', '_orig_mod.', 'module.'):
        weights = [key for key in state if key not in _NOT_WEIGHTS]
        if all(key.startswith(prefix) for key in weights):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _tensors(part: Mapping[Any, Any]) -> dict[str, Tensor]:
    state = _Metadata((key, value) for key, value in part.items() if isinstance(key, str) and isinstance(value, Tensor))
    state._metadata = getattr(part, '_metadata', None)  # the versions by which modules read older weights
    return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load ``state`` into ``model``, and refuse to leave anything random.

    Args:
        model: The model.
        state: Weights under the model's own keys. Keys that the model lacks are refused, unless they are counters
            and averages that training tools add (``n_averaged``, ``total_ops``, mmcv's ``ema_*``).
        what: Which model and which file, for the error.

    Raises:
        SetupError: If keys are missing or unknown, or shapes differ; it names the first of each.
    """
    # From the loading itself, since models resize and rename weights while they load them.
    missing: list[str] = []
    unknown: list[str] = []
    shapes: list[str] = []
    faults: list[str] = []

    def note(_: nn.Module, incompatible: Any) -> None:
        missing.extend(key for key in incompatible.missing_keys if not key.endswith('num_batches_tracked'))
        unknown.extend(key for key in incompatible.unexpected_keys if not _is_surplus(key))

    handle = model.register_load_state_dict_post_hook(note)
    try:
        model.load_state_dict(state, strict=False)
    except Exception as error:  # the model's own hooks may fail in any way on weights that are not its own
        shapes = [f'{key} is ({its}), not ({own})' for key, its, own in _MISMATCH.findall(str(error))]
        faults = [] if shapes else [_reason(error)]
    finally:
        handle.remove()
    faults += [
        f'{len(keys)} {kind} ({", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
        for kind, keys in (('missing', missing), ('of another shape', shapes), ('unknown', unknown))
        if keys
    ]
    if faults:
        raise SetupError(
            f'{what}: the weights do not fit: {"; ".join(faults)}. Is it a checkpoint of another architecture '
            'or number of classes?'
        )


def _is_surplus(key: str) -> bool:
    return key.rpartition('.')[2] in _NOT_WEIGHTS or key.startswith(('data_preprocessor.', 'ema_'))


class Foreign:
    """What a file holds of a class that the reader does not know: its name; nothing was called.

    Attributes:
        name: Its module and name.
        state: For MMEngine's training logs, what they hold; else None.
    """

    def __init__(self, name: str, args: tuple = (), state: Any = None) -> None:
        self.name, self.args, self.state = name, args, state

    def __repr__(self) -> str:
        return f'<{self.name}, not built>'


class _Global:
    """A class or function that a file names."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        build = _BUILDERS.get(self.name)
        return Foreign(self.name, args) if build is None else build(*args)


class _Metadata(OrderedDict):
    """An ``OrderedDict`` with the attribute in which ``state_dict`` keeps the versions of modules."""

    _metadata: Any = None


class _Storage:
    """Bytes that tensors of ``dtype`` are views of."""

    def __init__(self, data: Tensor, dtype: torch.dtype, budget: '_Budget') -> None:
        self.data, self.dtype, self.budget = data, dtype, budget


class _Budget:
    """How many bytes a file may still fill."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> None:
        self.left -= size
        if size < 0 or self.left < 0:
            raise pickle.UnpicklingError('its tensors are larger than the file')


_DTYPES = {
    f'torch.{name}': getattr(torch, name)
    for name in (
        *('float64', 'float32', 'float16', 'bfloat16', 'complex64', 'complex128', 'bool'),
        *('int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
        *('float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fnuz', 'float8_e5m2fnuz'),
    )
}
_STORAGES = {
    'UntypedStorage': torch.uint8,
    **{'DoubleStorage': torch.float64, 'FloatStorage': torch.float32, 'HalfStorage': torch.float16},
    **{'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32},
    **{'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8},
    **{'BoolStorage': torch.bool, 'ComplexFloatStorage': torch.complex64, 'ComplexDoubleStorage': torch.complex128},
}


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """A view of a storage; after gradient and hooks, ``rest`` may hold its dtype."""
    if isinstance(storage, Foreign):
        return Foreign('torch.Tensor')  # of quantised numbers
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], torch.dtype) else storage.dtype
    offset, size, stride = operator.index(offset), tuple(map(operator.index, size)), tuple(map(operator.index, stride))
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    beyond = min((offset, *size, *stride)) < 0 or (count and (last + 1) * dtype.itemsize > len(storage.data))
    if beyond or len(size) > 64:
        raise pickle.UnpicklingError('a tensor reaches beyond its storage')
    storage.budget.take(count * dtype.itemsize)
    if not count:
        return torch.empty(size, dtype=dtype)
    whole = len(storage.data) // dtype.itemsize * dtype.itemsize
    return storage.data[:whole].view(dtype).as_strided(size, stride, offset)


def _rebuild_from_type(build: _Global, kind: Any, args: tuple, *_: Any) -> Any:
    return build(*args)


def _encode(text: str, encoding: str) -> bytes:
    return text.encode('latin1' if encoding == 'latin1' else 'ascii')


def _is_key(value: Any) -> bool:
    # Nothing whose hash a file could make slow or deep.
    return isinstance(value, (str, bytes)) or (isinstance(value, int) and abs(value) < 2**32)


_BUILDERS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v3': _rebuild_tensor,
    'torch._utils._rebuild_parameter': lambda data, *_: data,
    'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
    'torch._tensor._rebuild_from_type_v2': _rebuild_from_type,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'collections.OrderedDict': lambda *_: _Metadata(),
    'collections.defaultdict': lambda *_: {},
    # Of milestones of learning rates, which a checkpoint of MMEngine holds.
    'collections.Counter': lambda counts=(): {k: v for k, v in dict(counts).items() if _is_key(k)},
    'builtins.set': lambda entries=(): {entry for entry in entries if _is_key(entry)},
    'builtins.frozenset': lambda entries=(): {entry for entry in entries if _is_key(entry)},
    '_codecs.encode': _encode,
}


class _Stream:
    """A pickle's bytes; at most so many reads, each of no more than there is."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.reads = file, size, 0

    def read(self, size: int) -> bytes:
        self.reads += 1
        if self.reads > 8_000_000:
            raise pickle.UnpicklingError('it holds millions of objects that are not weights')
        if size > self.size:
            raise EOFError('it ends early')
        return self.file.read(size)

    def readline(self) -> bytes:
        self.reads += 1
        return self.file.readline(1024)


_OPERATIONS = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.GLOBAL),
    *(pickle.STACK_GLOBAL, pickle.BINPERSID, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT),
    *(pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.LONG4, pickle.BINFLOAT, pickle.BINSTRING),
    *(pickle.SHORT_BINSTRING, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES),
    *(pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2),
    *(pickle.TUPLE3, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
)


class _Unpickler(pickle._Unpickler):
    """Builds containers, numbers, strings and tensors, and nothing else.

    The pure Python unpickler: in the C one a file of some bytes can make the memo take gigabytes, and here each
    operation that builds, calls or sets something has its own rule.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        operation[0]: pickle._Unpickler.dispatch[operation[0]] for operation in _OPERATIONS
    }

    # Of the base class, which typeshed describes in part.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: _Stream, storage: Callable[..., _Storage]) -> None:
        super().__init__(stream, encoding='utf-8', errors='surrogateescape')
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        name = f'{"builtins" if module == "__builtin__" else module}.{name}'
        return _DTYPES.get(name) or _Global(name)

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, count = pid[:5]
        dtype = _STORAGES.get(kind.name.rpartition('.')[2])
        if dtype is None:
            return Foreign(kind.name)
        return self._storage(str(key), dtype, operator.index(count) * dtype.itemsize, *pid[5:])

    def _call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, (_Global, Foreign)):
            raise pickle.UnpicklingError('it calls what is not a function')
        self.append(function(*args) if isinstance(function, _Global) else Foreign(function.name))

    def _call_with_names(self) -> None:
        self.stack.pop()
        self._call()

    def _frame(self) -> None:
        self.read(8)

    def _set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Foreign):
            target.state = state
        elif isinstance(target, _Metadata) and isinstance(state, dict):
            target._metadata = state.get('_metadata')

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _set_items(self) -> None:
        self._fill(self.pop_mark())

    def _fill(self, items: list) -> None:
        if isinstance(self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if _is_key(key):
                    self.stack[-1][key] = value

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _add(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(item for item in items if _is_key(item))

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.append({item for item in items if _is_key(item)})

    dispatch.update(
        {
            pickle.REDUCE[0]: _call,
            pickle.NEWOBJ[0]: _call,
            pickle.NEWOBJ_EX[0]: _call_with_names,
            pickle.FRAME[0]: _frame,
            pickle.BUILD[0]: _set_state,
            pickle.SETITEM[0]: _set_item,
            pickle.SETITEMS[0]: _set_items,
            pickle.APPEND[0]: _append,
            pickle.APPENDS[0]: _appends,
            pickle.ADDITEMS[0]: _add,
            pickle.FROZENSET[0]: _frozenset,
            pickle.BYTEARRAY8[0]: dispatch[pickle.BINBYTES8[0]],  # its own allocates what the file asks for
        }
    )


def _read(file: BinaryIO) -> Any:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    zipped = file.read(4) == b'PK\x03\x04'
    file.seek(0)
    return (_read_zip if zipped else _read_legacy)(file, size)


def _read_zip(file: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
    root = next(name for name in records if re.fullmatch('[^/]+/data.pkl', name)).partition('/')[0]
    on_disk, in_memory = _Budget(size), _Budget(8 * size + 2**20)

    def record(name: str) -> Tensor:
        info = records[f'{root}/{name}']
        if info.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError('it is compressed, which torch.save never does')
        on_disk.take(info.file_size)
        file.seek(info.header_offset)
        lengths = struct.unpack('<26xHH', file.read(30))
        file.seek(sum(lengths), io.SEEK_CUR)
        return _fill(file, info.file_size)

    if f'{root}/byteorder' in records and record('byteorder').numpy().tobytes().decode() != sys.byteorder:
        raise pickle.UnpicklingError('it was saved on a machine of another byte order')
    loaded: dict[str, _Storage] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> _Storage:
        if key not in loaded:
            loaded[key] = _Storage(record(f'data/{key}'), dtype, in_memory)
        if count > len(loaded[key].data):
            raise pickle.UnpicklingError('a storage is larger than its record')
        return loaded[key]

    data = record('data.pkl').numpy().tobytes()
    stream = _Stream(io.BytesIO(data), len(data))
    return _Plain(_Unpickler(stream, storage).load(), stream.reads).value


def _read_legacy(file: BinaryIO, size: int) -> Any:
    on_disk, in_memory = _Budget(size), _Budget(8 * size + 2**20)
    loaded: dict[str, _Storage] = {}

    def storage(key: str, dtype: torch.dtype, count: int, view: Any = None) -> _Storage:
        if view is not None:
            raise pickle.UnpicklingError('it is of a time before PyTorch 1.0')
        if key not in loaded:
            on_disk.take(count)
            loaded[key] = _Storage(torch.empty(count, dtype=torch.uint8), dtype, in_memory)
        return loaded[key]

    stream = _Stream(file, size)
    if _Unpickler(stream, storage).load() != 0x1950A86A20F9469CFC6C:
        raise pickle.UnpicklingError('it does not begin as a checkpoint does')
    for _ in ('version', 'sizes of types'):
        _Unpickler(stream, storage).load()
    content = _Unpickler(stream, storage).load()
    for key in _Unpickler(stream, storage).load():
        data = loaded[str(key)].data
        (count,) = struct.unpack('<q', file.read(8))
        if count * loaded[str(key)].dtype.itemsize != len(data):
            raise pickle.UnpicklingError('a storage is of another size than its record')
        data.copy_(_fill(file, len(data)))
    return _Plain(content, stream.reads).value


def _fill(file: BinaryIO, size: int) -> Tensor:
    data = torch.empty(size, dtype=torch.uint8)
    if file.readinto(data.numpy()) != size:  # type: ignore[attr-defined]
        raise EOFError('it ends early')
    return data


class _Plain:
    """A copy of ``value`` without the reader's own classes; refused if it is deep, or wide by repetition."""

    def __init__(self, value: Any, objects: int) -> None:
        self._left = 4 * objects + 1000
        self.value = self._of(value, 0)

    def _of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > 64 or self._left < 0:
            raise pickle.UnpicklingError('its lists are too deep, or repeat each other')
        deeper = depth + 1
        if isinstance(value, _Metadata):
            plain = OrderedDict((key, self._of(entry, deeper)) for key, entry in value.items())
            if value._metadata is not None:
                plain._metadata = self._of(value._metadata, deeper)  # type: ignore[attr-defined]
            return plain
        if isinstance(value, dict):
            return {key: self._of(entry, deeper) for key, entry in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._of(entry, deeper) for entry in value)
        if isinstance(value, (_Global, _Storage)):
            return Foreign(getattr(value, 'name', 'torch.storage'))
        return self._foreign(value, deeper) if isinstance(value, Foreign) else value

    def _foreign(self, value: Foreign, depth: int) -> Any:
        if value.name.endswith('multiarray.scalar'):
            numbers = _numbers(*value.args)
            return value if numbers is None else numbers.item()
        if value.name.endswith('multiarray._reconstruct') and isinstance(value.state, tuple):
            _, shape, dtype, fortran, data = value.state
            numbers = _numbers(dtype, data)
            if numbers is not None:
                return torch.from_numpy(numbers.reshape(shape, order='F' if fortran else 'C').copy())
        logs = value.name == 'mmengine.logging.history_buffer.HistoryBuffer'
        return Foreign(value.name, state=self._of(value.state, depth) if logs else None)


def _numbers(dtype: Any, data: Any) -> np.ndarray | None:
    """NumPy's numbers from a pickled dtype and bytes."""
    if not isinstance(dtype, Foreign) or dtype.name != 'numpy.dtype' or not isinstance(data, bytes):
        return None
    kind, order = dtype.args[0], dtype.state[1] if dtype.state else '|'
    if not re.fullmatch(r'[fiu][1248]|b1', kind) or order not in '<>|=':
        return None
    kind = np.dtype(kind)
    return np.frombuffer(data, kind.newbyteorder(order)).astype(kind)
