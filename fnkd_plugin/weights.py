"""Safe reading of checkpoints: no code from a file runs, and no class that it names is instantiated.

Files are read by ``torch.load(weights_only=True)``. Any class that it does not know, such as the ``argparse.Namespace``
that timm's trainer stores beside its weights, becomes an empty :class:`Foreign`.
"""

import io
import os
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import safetensors.torch
import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError

TIMM_EMA = ('state_dict_ema', 'model_ema')
"""Keys of the averaged weights in checkpoints of timm, DeiT and torchvision."""

_NOT_WEIGHTS = ('n_averaged', 'total_ops', 'total_params')
# torch's, to read the file without weights_only.
_ADVICE = re.compile(
    r'Weights only load failed.*(?:trusted source\.|WeightsUnpickler error:)|Check the documentation of torch.*', re.S
)
_SHAPE = r'torch\.Size\(\[(.*?)\]\)'
_MISMATCH = re.compile(rf'size mismatch for (\S+): .*? {_SHAPE} .*? {_SHAPE}')


class UnreadableCheckpointError(SetupError):
    """A checkpoint that is missing or truncated, or has no weights."""


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """Read the content of a checkpoint of MMEngine, timm or plain torch; tensors are on the CPU.

    Args:
        source: A path, or a URL, which is downloaded into torch's hub folder.

    Returns:
        Numbers, strings, tensors, and dicts, lists, tuples and sets of these; anything else is a :class:`Foreign`.

    Raises:
        UnreadableCheckpointError: If the file is missing, truncated or not a checkpoint, or too large in memory.
    """
    path = download(str(source)) if str(source).startswith(('http://', 'https://')) else os.path.expanduser(source)
    if not os.path.isfile(path):
        fault = 'is not a file' if os.path.exists(path) else 'does not exist'
        raise UnreadableCheckpointError(f'Checkpoint {source} {fault}.')
    if str(path).endswith('.safetensors'):
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise _unreadable(source, error) from error
    with open(path, 'rb') as file:
        return read_file(file, source)


def read_file(file: BinaryIO, source: str | Path) -> dict[str, Any]:
    """See :func:`read_checkpoint`, but from an open file; ``source`` is its name in errors."""
    try:
        content = _load(file)
    except Exception as error:  # a damaged file can raise any type of error
        raise _unreadable(source, error) from error
    if isinstance(content, dict):
        return content
    kind = content.name if isinstance(content, Foreign) else type(content).__name__
    raise UnreadableCheckpointError(f'Checkpoint {source} has a {kind} instead of a state_dict; save the state_dict.')


def _unreadable(source: str | Path, error: Exception) -> UnreadableCheckpointError:
    return UnreadableCheckpointError(
        f'Checkpoint {source} cannot be read ({_reason(error)}); it may be truncated, or not a checkpoint.'
    )


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
    return ' '.join(_ADVICE.sub('', str(error)).split())[:200].rstrip('.') or type(error).__name__


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
    named = ((key, value) for key, value in part.items() if isinstance(key, str) and isinstance(value, Tensor))
    state = OrderedDict(named)
    # The versions by which modules read older weights.
    state._metadata = getattr(part, '_metadata', None)  # type: ignore[attr-defined]
    return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load ``state`` into ``model``; no parameter may stay at its random initialisation.

    Args:
        model: The model.
        state: Weights under the model's own keys. Unknown keys raise, except for counters and averages that training
            tools add (``n_averaged``, ``total_ops``, mmcv's ``ema_*``).
        what: The model and the file, for the error.

    Raises:
        SetupError: If keys are missing or unknown, or shapes differ; the message names the first of each.
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
        f'{len(keys)} {kind} ({", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
        for kind, keys in (('missing', missing), ('of another shape', shapes), ('unknown', unknown))
        if keys
    ]
    if faults:
        raise SetupError(
            f'{what}: the weights do not fit: {"; ".join(faults)}. Is it a checkpoint of another architecture '
            'or number of classes?'
        )


def _is_ignored(key: str) -> bool:
    return key.rpartition('.')[2] in _NOT_WEIGHTS or key.startswith(('data_preprocessor.', 'ema_'))


class Foreign:
    """Placeholder for an object of a class that is not loaded; its content is dropped.

    Attributes:
        name: The module and name of the class.
    """

    name = ''

    def __new__(cls, *args: Any) -> 'Foreign':  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __repr__(self) -> str:
        return f'<{self.name}, not loaded>'


_LOCK = threading.Lock()
_MAX_OBJECTS, _MAX_DEPTH = 1_000_000, 64


def _load(file: BinaryIO) -> Any:
    size = file.seek(0, io.SEEK_END)
    zipped = zipfile.is_zipfile(file)
    if zipped and sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > size:
        raise ValueError('its records are larger than the file, unlike those of torch.save')
    with _no_class_allowed() as allow:
        names = ['argparse.Namespace']
        if zipped:
            file.seek(0)
            names += torch.serialization.get_unsafe_globals_in_checkpoint(file)
        allow([(type('Foreign', (Foreign,), {'name': name}), name) for name in names])
        file.seek(0)
        content = torch.load(file, map_location='cpu', weights_only=True)
    _check_content(content, size)
    return content


@contextmanager
def _no_class_allowed() -> Iterator[Callable[[list], None]]:
    """Clear torch's global list of classes that ``weights_only`` builds, and restore it on exit."""
    with _LOCK:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            yield torch.serialization.add_safe_globals
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


def _check_content(content: Any, size: int) -> None:
    """Refuse content that is far larger than its file of ``size`` bytes, by references or expanded tensors.

    Raises:
        ValueError: Also for tensors that are not dense, and for dicts with other attributes than torch's.
    """
    left, memory = _MAX_OBJECTS, 8 * size + 2**20
    stack = [(content, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        inner: Iterable[Any] = ()
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != 'cpu' or value.dim() > 64:
                raise ValueError('it has a tensor that is not dense')
            memory -= value.numel() * value.element_size()
        elif isinstance(value, dict):
            if getattr(value, '__dict__', {}).keys() - {'_metadata'}:
                raise ValueError('it has a dict with attributes')
            inner = dict.values(value)
        elif isinstance(value, (list, tuple)):
            inner = value
        stack.extend((entry, depth + 1) for entry in inner)
        if left < 0 or memory < 0 or depth > _MAX_DEPTH:
            raise ValueError('its content is much larger than the file, or nested too deep')
