"""Safe reading of checkpoints: no code from a file runs, and no class that it names is instantiated.

The reader builds tensors, plain containers, numbers and strings. Any other class or function in a file, such as the
``argparse.Namespace`` that timm's trainer stores beside its weights, becomes a :class:`Foreign`. The reader has no
global state, so that threads may read concurrently, and its memory is bounded by the size of the file.
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
"""Keys of the averaged weights in checkpoints of timm, DeiT and torchvision."""

_NOT_WEIGHTS = ('n_averaged', 'total_ops', 'total_params')
_SHAPE = r'torch\.Size\(\[(.*?)\]\)'
_MISMATCH = re.compile(rf'size mismatch for (\S+): .*? {_SHAPE} .*? {_SHAPE}')


class MismatchedWeightsError(SetupError):
    """Weights of another model."""


class UnreadableCheckpointError(SetupError):
    """A checkpoint that is missing or truncated, or has no weights."""


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """Read the content of a checkpoint of MMEngine, timm or plain torch; tensors are on the CPU.

    Args:
        source: A path, or a URL, which is downloaded into torch's hub folder.

    Returns:
        Numbers, strings, tensors, and dicts, lists, tuples and sets of these. NumPy scalars become Python numbers and
        arrays become tensors; anything else is a :class:`Foreign`.

    Raises:
        UnreadableCheckpointError: If the file is missing, truncated or not a checkpoint, or too large in memory.
    """
    path = download(str(source)) if str(source).startswith(('http://', 'https://')) else os.path.expanduser(source)
    if not os.path.isfile(path):
        fault = 'is not a file' if os.path.exists(path) else 'does not exist'
        raise UnreadableCheckpointError(f'Checkpoint {source} {fault}.')
    if str(path).endswith('.safetensors'):
        return _read_or_raise(source, lambda: safetensors.torch.load_file(path))
    return read_stream(lambda: open(path, 'rb'), source)


def read_stream(open_file: Callable[[], BinaryIO], source: str | Path) -> dict[str, Any]:
    """See :func:`read_checkpoint`, but from the file that ``open_file()`` returns; ``source`` is its name in errors."""

    def read() -> Any:
        with open_file() as file:
            return _read(file)

    content = _read_or_raise(source, read)
    if isinstance(content, dict):
        return content
    kind = content.name if isinstance(content, Foreign) else type(content).__name__
    raise UnreadableCheckpointError(f'Checkpoint {source} has a {kind} instead of a state_dict; save the state_dict.')


def _read_or_raise(source: str | Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # a damaged file can raise any type of error
        raise UnreadableCheckpointError(
            f'Checkpoint {source} cannot be read ({_reason(error)}); it may be truncated, or not a checkpoint.'
        ) from error


def download(url: str, folder: str | None = None) -> str:
    """Download ``url`` into ``folder`` (default: torch's hub folder), unless the file exists; return its path.

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
    """Read the weights of a checkpoint.

    Raises:
        UnreadableCheckpointError: If the file cannot be read or has no weights.
    """
    return find_state_dict(read_checkpoint(source), source)


def find_state_dict(checkpoint: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint that :func:`read_checkpoint` returned.

    EMA weights are preferred, as in timm. Prefixes of DDP, ``AveragedModel`` and ``torch.compile`` are removed if all
    keys have them.

    Raises:
        UnreadableCheckpointError: If there are none.
    """
    names = (*TIMM_EMA, 'state_dict', 'model')
    sets = [part for name in names if isinstance(part := checkpoint.get(name), dict)]
    state = next(filter(None, map(_tensors, [*sets, checkpoint])), None)
    if state is None:
        raise UnreadableCheckpointError(f'Checkpoint {source} has no state_dict.')
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
    """Load ``state`` into ``model``; no parameter may stay at its random initialisation.

    Args:
        model: The model.
        state: Weights under the model's own keys. Unknown keys raise, except for counters and averages that training
            tools add (``n_averaged``, ``total_ops``, mmcv's ``ema_*``).
        what: The model and the file, for the error.

    Raises:
        MismatchedWeightsError: If keys are missing or unknown, or shapes differ; the message names the first of each.
    """
    # Recorded during loading, since models resize and rename weights in their load hooks.
    missing: list[str] = []
    unknown: list[str] = []
    shapes: list[str] = []
    faults: list[str] = []

    def record(_: nn.Module, incompatible: Any) -> None:
        missing.extend(key for key in incompatible.missing_keys if not key.endswith('num_batches_tracked'))
        unknown.extend(key for key in incompatible.unexpected_keys if not _is_ignored(key))

    handle = model.register_load_state_dict_post_hook(record)
    try:
        model.load_state_dict(state, strict=False)
    except Exception as error:  # a model's load hooks may raise any type of error on other weights
        shapes = [f'{key} is ({its}), not ({own})' for key, its, own in _MISMATCH.findall(str(error))]
        faults = [] if shapes else [_reason(error)]
    finally:
        handle.remove()
    faults += [
        f'{len(keys)} {kind} ({keys[0]}{", ..." if len(keys) > 1 else ""})'
        for kind, keys in (('missing', missing), ('of another shape', shapes), ('unknown', unknown))
        if keys
    ]
    if faults:
        raise MismatchedWeightsError(
            f'{what}: the weights do not fit: {"; ".join(faults)}; give a checkpoint of this model, not of another '
            'architecture or number of classes.'
        )


def _is_ignored(key: str) -> bool:
    return key.rpartition('.')[2] in _NOT_WEIGHTS or key.startswith(('data_preprocessor.', 'ema_'))


class Foreign:
    """Placeholder for an object of a class that the reader does not build.

    Attributes:
        name: The module and name of the class.
        state: The content of MMEngine's training logs; None for other classes.
    """

    def __init__(self, name: str, args: tuple = (), state: Any = None) -> None:
        self.name, self.args, self.state = name, args, state

    def __repr__(self) -> str:
        return f'<{self.name}, not loaded>'


class _Global:
    """A class or function referenced by a file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        build = _BUILDERS.get(self.name)
        return Foreign(self.name, args) if build is None else build(*args)


class _Metadata(OrderedDict):
    """An ``OrderedDict`` with the ``_metadata`` of a ``state_dict``, the versions of its modules."""

    _metadata: Any = None


class _Storage:
    """The bytes behind tensors of ``dtype``."""

    def __init__(self, data: Tensor, dtype: torch.dtype, budget: '_Budget') -> None:
        self.data, self.dtype, self.budget = data, dtype, budget


class _Budget:
    """The number of bytes that may still be allocated for a file."""

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
    """A view of a storage; ``rest`` is ``requires_grad``, hooks and possibly the dtype."""
    if isinstance(storage, Foreign):
        return Foreign('torch.Tensor')  # quantised
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


def _encode(text: str, encoding: str) -> bytes:
    return text.encode('latin1' if encoding == 'latin1' else 'ascii')


def _is_key(value: Any) -> bool:
    # Only types whose hash cannot be made slow or deeply recursive by a file.
    return isinstance(value, (str, bytes)) or (isinstance(value, int) and abs(value) < 2**32)


_BUILDERS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v3': _rebuild_tensor,
    'torch._utils._rebuild_parameter': lambda data, *_: data,
    'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
    'torch._tensor._rebuild_from_type_v2': lambda build, kind, args, *_: build(*args),
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'collections.OrderedDict': lambda *_: _Metadata(),
    'collections.defaultdict': lambda *_: {},
    # The learning rate milestones in checkpoints of MMEngine.
    'collections.Counter': lambda counts=(): {k: v for k, v in dict(counts).items() if _is_key(k)},
    'builtins.set': lambda entries=(): {entry for entry in entries if _is_key(entry)},
    'builtins.frozenset': lambda entries=(): {entry for entry in entries if _is_key(entry)},
    '_codecs.encode': _encode,
}


class _Stream:
    """The bytes of a pickle, with limits on the number and size of reads."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.reads = file, size, 0

    def read(self, size: int) -> bytes:
        self.reads += 1
        if self.reads > 8_000_000:
            raise pickle.UnpicklingError('it has millions of objects that are not weights')
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
    """Builds only containers, numbers, strings and tensors.

    Based on the Python unpickler, since in the C unpickler a tiny file can allocate gigabytes for the memo. Every
    operation that builds, calls or sets something is overridden.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        operation[0]: pickle._Unpickler.dispatch[operation[0]] for operation in _OPERATIONS
    }

    # Attributes of the base class that typeshed lacks.
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
            raise pickle.UnpicklingError('it calls an object that is not a function')
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
            pickle.BYTEARRAY8[0]: dispatch[pickle.BINBYTES8[0]],  # the original allocates the size stated in the file
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
            raise pickle.UnpicklingError('it is compressed, unlike files of torch.save')
        on_disk.take(info.file_size)
        file.seek(info.header_offset)
        lengths = struct.unpack('<26xHH', file.read(30))
        file.seek(sum(lengths), io.SEEK_CUR)
        return _fill(file, info.file_size)

    if f'{root}/byteorder' in records and record('byteorder').numpy().tobytes().decode() != sys.byteorder:
        raise pickle.UnpicklingError('it was saved on a machine with another byte order')
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
            raise pickle.UnpicklingError('it is from before PyTorch 1.0')
        if key not in loaded:
            on_disk.take(count)
            loaded[key] = _Storage(torch.empty(count, dtype=torch.uint8), dtype, in_memory)
        return loaded[key]

    stream = _Stream(file, size)
    if _Unpickler(stream, storage).load() != 0x1950A86A20F9469CFC6C:
        raise pickle.UnpicklingError('it does not start like a checkpoint')
    for _ in ('version', 'sizes of types'):
        _Unpickler(stream, storage).load()
    content = _Unpickler(stream, storage).load()
    for key in _Unpickler(stream, storage).load():
        data = loaded[str(key)].data
        (count,) = struct.unpack('<q', file.read(8))
        if count * loaded[str(key)].dtype.itemsize != len(data):
            raise pickle.UnpicklingError('the size of a storage differs from that of its record')
        data.copy_(_fill(file, len(data)))
    return _Plain(content, stream.reads).value


def _fill(file: BinaryIO, size: int) -> Tensor:
    data = torch.empty(size, dtype=torch.uint8)
    if file.readinto(data.numpy()) != size:  # type: ignore[attr-defined]
        raise EOFError('it ends early')
    return data


class _Plain:
    """A copy of ``value`` without the reader's classes; raises if it is too deep or expands too far by references."""

    def __init__(self, value: Any, objects: int) -> None:
        self._left = 4 * objects + 1000
        self.value = self._of(value, 0)

    def _of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > 64 or self._left < 0:
            raise pickle.UnpicklingError('its containers are nested too deep, or repeat each other')
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
    """A NumPy array from a pickled dtype and bytes; None if it is not numeric."""
    if not isinstance(dtype, Foreign) or dtype.name != 'numpy.dtype' or not isinstance(data, bytes):
        return None
    kind, order = dtype.args[0], dtype.state[1] if dtype.state else '|'
    if not re.fullmatch(r'[fiu][1248]|b1', kind) or order not in '<>|=':
        return None
    kind = np.dtype(kind)
    return np.frombuffer(data, kind.newbyteorder(order)).astype(kind)
