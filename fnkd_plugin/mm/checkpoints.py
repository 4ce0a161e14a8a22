"""Reading checkpoints as data: nothing in a file runs code, on either stack.

Two holes of the frameworks are closed by ``import fnkd_plugin`` (:func:`guard_framework_loaders`): the fallback
to a full unpickling when strict reading fails, and ``Runner.resume``, which runs ``meta['config']`` as Python.
"""

import functools
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as _framework
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError

TIMM_EMA = ('state_dict_ema', 'model_ema')
"""Where timm's checkpoints keep averaged weights."""

_RUNS_AS_PYTHON = ('config', 'cfg')
_HISTORY = '_fnkd_history_buffer'
_SHAPE = r'torch\.Size\(\[(.*?)\]\)'
_MISMATCH = re.compile(rf'size mismatch for (\S+): .*? {_SHAPE} .*? {_SHAPE}')


class UnreadableCheckpointError(SetupError):
    """A checkpoint that is missing, truncated, or no plain data."""


def _inert_classes() -> list[Any]:
    # What stock MMEngine checkpoints hold besides tensors and builtins: training logs as numpy arrays.
    core = getattr(np, '_core', None) or np.core
    kinds = (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_)
    return [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
        *(type(np.dtype(kind)) for kind in kinds),
        # Logs hold their own methods, which pickle looks up so. The fork allows the real one, and with it any
        # attribute of all of these.
        (_method_of_logs, 'builtins.getattr'),
    ]


def _method_of_logs(owner: Any, name: str) -> Any:
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'it asks for getattr of {owner}')


@contextmanager
def _strict_reading() -> Iterator[None]:
    # The environment variable outranks a caller's weights_only=False, which is the frameworks' fallback;
    # its opposite, a usual remedy for upstream on torch >= 2.6, must go.
    strict, lax = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    before = {name: os.environ.pop(name, None) for name in (strict, lax)}
    os.environ[strict] = '1'
    # The fork adds classes of its own to ours, and with them the real getattr.
    theirs = getattr(_framework, 'get_torch_safe_globals', None)
    if theirs is not None:
        _framework.get_torch_safe_globals = list
    try:
        with torch.serialization.safe_globals(_inert_classes()):
            yield
    finally:
        if theirs is not None:
            _framework.get_torch_safe_globals = theirs
        del os.environ[strict]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _read(name: str, loader: Callable[[], Any]) -> Any:
    try:
        with _strict_reading():
            checkpoint = loader()
    except (UnreadableCheckpointError, ImportError):
        raise
    except FileNotFoundError as error:
        raise UnreadableCheckpointError(
            f'Checkpoint {name} does not exist. Give its path: a config of ours takes its teacher from '
            '--cfg-options teacher_checkpoint=FILE, which its own plain config trains, and ImageNet weights '
            'from the folder that the environment variable FNKD_WEIGHTS names.'
        ) from error
    except pickle.UnpicklingError as error:
        raise UnreadableCheckpointError(
            f'Checkpoint {name} is not plain data, and what it holds could run code when read '
            f'({_reason(error)}); or it is no checkpoint. Save its state_dict alone, or as .safetensors.'
        ) from error
    except OSError as error:
        raise UnreadableCheckpointError(f'Checkpoint {name} cannot be fetched or read ({_reason(error)}).') from error
    except Exception as error:  # the reader fails in as many ways as there are bytes to get wrong
        raise UnreadableCheckpointError(
            f'Checkpoint {name} cannot be read; it may be truncated ({_reason(error)}). Fetch or save it again.'
        ) from error
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        for key in _RUNS_AS_PYTHON:
            checkpoint['meta'].pop(key, None)
    return _revive(checkpoint)


def _reason(error: Exception) -> str:
    # torch wraps the reader's own words in half a page of advice.
    inner = error.__context__ if isinstance(error.__context__, pickle.UnpicklingError) else error
    return str(inner).strip().split('\n')[0].split('. Please use')[0].rstrip('.') or type(error).__name__


def guard_framework_loaders() -> None:
    """Make every scheme of MMEngine's ``CheckpointLoader`` read strictly, and read ``.safetensors`` files too."""
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if not getattr(loader, '_fnkd_guarded', False):
            CheckpointLoader.register_scheme(prefix, _guarded(loader), force=True)


def _guarded(loader: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(loader)
    def read(filename: str, map_location: Any = None, **kwargs: Any) -> Any:
        path = os.path.expanduser(str(filename))
        if os.path.isfile(path):
            # Not by the framework's loader, which knows no .safetensors.
            return _read(filename, lambda: _read_file(path, map_location))
        return _read(filename, lambda: loader(filename, map_location, **kwargs))

    read._fnkd_guarded = True  # type: ignore[attr-defined]
    return read


def _read_file(path: str, map_location: Any) -> Any:
    if path.endswith('.safetensors'):
        device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
        return safetensors.torch.load_file(path, device=str(device))
    return torch.load(path, map_location=map_location, weights_only=True)


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """All that a checkpoint of MMEngine, timm or plain torch holds: a path, a URL or a scheme of MMEngine.

    Raises:
        UnreadableCheckpointError: If the file is missing, truncated, or no plain data.
    """
    checkpoint = CheckpointLoader.load_checkpoint(str(source), map_location='cpu', logger='silent')
    if not isinstance(checkpoint, dict):
        raise UnreadableCheckpointError(f'Checkpoint {source} holds no state_dict.')
    return checkpoint


def read_state_dict(source: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint: :func:`find_state_dict` of :func:`read_checkpoint`.

    Raises:
        UnreadableCheckpointError: If the file is missing, truncated, no plain data, or holds no weights.
    """
    return find_state_dict(read_checkpoint(source), source)


def find_state_dict(checkpoint: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The weights in what :func:`read_checkpoint` gave.

    Of several sets the EMA weights come first, as timm reads its own. Prefixes of DDP and ``torch.compile``
    are cut.

    Raises:
        UnreadableCheckpointError: If there are none.
    """
    found = next(
        (checkpoint[k] for k in (*TIMM_EMA, 'state_dict', 'model') if isinstance(checkpoint.get(k), dict)), checkpoint
    )
    if not any(isinstance(value, Tensor) for value in found.values()):
        raise UnreadableCheckpointError(f'Checkpoint {source} holds no state_dict.')
    state = {}
    for key, value in found.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            for prefix in ('module.', '_orig_mod.', 'module.'):
                key = key.removeprefix(prefix)
            state[key] = value
    return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load ``state`` into ``model`` and refuse to leave anything random.

    Args:
        model: The model.
        state: Weights under the model's own keys; keys that the model lacks are refused too.
        what: Which model and which file, for the error.

    Raises:
        SetupError: If keys are missing or unknown, or shapes differ; it names the first of each.
    """
    # Told by the loading itself, since models resize and rename weights while they load them.
    missing: list[str] = []
    unknown: list[str] = []
    shapes: list[str] = []
    faults: list[str] = []

    def note(_: nn.Module, incompatible: Any) -> None:
        missing.extend(key for key in incompatible.missing_keys if not key.endswith('num_batches_tracked'))
        unknown.extend(key for key in incompatible.unexpected_keys if not key.startswith('data_preprocessor.'))

    handle = model.register_load_state_dict_post_hook(note)
    try:
        model.load_state_dict(dict(state), strict=False)
    except Exception as error:  # the model's own hooks may fail in any way on weights that are not its own
        shapes = [f'{key} is ({its}), not ({own})' for key, its, own in _MISMATCH.findall(str(error))]
        faults = [] if shapes else [' '.join(str(error).split()) or type(error).__name__]
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


def to_plain(value: Any) -> Any:
    """``value`` with logs and arrays as tensors, numbers and strings, so that strict reading needs no exceptions.

    What is none of these (an object of some class) is left out of dicts and sequences.
    """
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {_HISTORY: 1, 'log': _array(log), 'count': _array(count), 'max_length': value.max_length}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, OrderedDict):
        return OrderedDict((k, to_plain(v)) for k, v in value.items() if _is_plain(v))
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items() if _is_plain(v)}
    if isinstance(value, (list, tuple)):
        kept = [to_plain(v) for v in value if _is_plain(v)]
        return tuple(kept) if isinstance(value, tuple) else kept
    kinds: tuple[Callable[[Any], Any], ...] = (bool, int, float, str, bytes)
    for kind in kinds:
        if isinstance(value, kind):  # type: ignore[arg-type]
            return kind(value)  # of a subclass, such as an enum's, the plain one
    return value


def _is_plain(value: Any) -> bool:
    kinds = (HistoryBuffer, np.generic, np.ndarray, dict, list, tuple, set, Tensor, str, bytes, int, float)
    return value is None or isinstance(value, kinds)


def _array(values: np.ndarray) -> Any:
    return torch.from_numpy(values.copy()) if values.dtype.kind in 'fiub' else values.tolist()


def _revive(checkpoint: Any) -> Any:
    """Training logs back from their plain form."""
    hub = checkpoint.get('message_hub') if isinstance(checkpoint, dict) else None
    scalars: Any = hub.get('log_scalars') if isinstance(hub, dict) else None
    for key, value in scalars.items() if isinstance(scalars, dict) else ():
        if isinstance(value, dict) and _HISTORY in value:
            with suppress(Exception):  # one that is not of our making; MMEngine passes over it and says so
                scalars[key] = HistoryBuffer(value['log'].numpy(), value['count'].numpy(), value['max_length'])
    return checkpoint
