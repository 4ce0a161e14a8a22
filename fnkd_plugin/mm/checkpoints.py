"""MMEngine checkpoints: read by :mod:`fnkd_plugin.weights`, validated before resuming, stored as plain data.

``import fnkd_plugin`` replaces MMEngine's own loaders (:func:`guard_framework_loaders`), which can run code: upstream's
if an environment variable allows it, the fork's if strict reading fails, and both where ``Runner.resume`` evaluates
``meta['config']``.
"""

import io
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as _framework
from torch import Tensor

from fnkd_plugin import weights
from fnkd_plugin.errors import SetupError
from fnkd_plugin.weights import Foreign, UnreadableCheckpointError

_HISTORY = '_fnkd_history_buffer'
_FILES = ('best_ckpt', 'keep_ckpt_ids', 'last_ckpt')
"""Prefixes of the message hub's keys for checkpoint paths; ``CheckpointHook`` may delete these files."""


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """Like :func:`fnkd_plugin.weights.read_checkpoint`, for every scheme of MMEngine (``openmmlab://``, ``s3://``).

    Raises:
        UnreadableCheckpointError: If the file is missing, truncated, or holds no weights.
    """
    try:
        return CheckpointLoader.load_checkpoint(str(source), map_location='cpu', logger='silent')
    except (SetupError, ImportError):
        raise
    except Exception as error:  # unknown model names, errors of storage clients
        raise UnreadableCheckpointError(f'Checkpoint {source} cannot be read ({error!r:.200}).') from error


def guard_framework_loaders() -> None:
    """Make MMEngine's ``CheckpointLoader`` read files as data for every scheme, ``.safetensors`` included.

    ``map_location`` is ignored: tensors stay on the CPU, and loading copies them to the model's device.
    """
    CheckpointLoader.register_scheme('', _load_from_local, force=True)
    CheckpointLoader.register_scheme([r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], _load_from_ceph, force=True)
    # The other schemes end in a URL or a downloaded file.
    _framework.load_url = _load_url
    if hasattr(_framework, '_safe_torch_load'):  # the fork's
        _framework._safe_torch_load = _load_from_local


def _load_from_local(filename: Any, map_location: Any = None) -> dict[str, Any]:
    return _for_framework(weights.read_checkpoint(filename), filename)


def _load_from_ceph(filename: str, map_location: Any = None, backend: str = 'petrel') -> dict[str, Any]:
    def opened() -> BinaryIO:
        return io.BytesIO(get_file_backend(filename, backend_args=dict(backend=backend)).get(filename))

    return _for_framework(weights.read_stream(opened, filename), filename)


def _load_url(url: str, model_dir: str | None = None, map_location: Any = None, **_: Any) -> dict[str, Any]:
    return _for_framework(weights.read_checkpoint(weights.download(url, model_dir)), url)


def _for_framework(checkpoint: dict[str, Any], source: Any) -> dict[str, Any]:
    """Remove what MMEngine would use unchecked: objects of unexpected types, code and paths."""
    if 'state_dict' not in checkpoint:
        rest = {key: value for key, value in checkpoint.items() if not isinstance(value, Tensor)}
        checkpoint = {**rest, 'state_dict': weights.find_state_dict(checkpoint, source)}
    for name in ('state_dict', 'ema_state_dict'):
        state = checkpoint.get(name)
        if name not in checkpoint:
            continue
        if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
            raise UnreadableCheckpointError(f'Checkpoint {source} holds no {name}, but {state!r:.80}.')
        for key in [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]:
            del state[key]
    if isinstance(checkpoint.get('meta'), dict):
        # MMEngine executes a config as Python.
        unsafe = 'config', 'cfg'
        checkpoint['meta'] = {k: v for k, v in checkpoint['meta'].items() if isinstance(k, str) and k not in unsafe}
    else:
        checkpoint.pop('meta', None)
    if 'message_hub' in checkpoint:
        checkpoint['message_hub'] = _hub(checkpoint['message_hub'])
    return checkpoint


def _hub(stored: Any) -> dict[str, Any]:
    parts = {name: _named(stored, name) for name in ('log_scalars', 'runtime_info', 'resumed_keys')}
    logs = {key: _history(value) for key, value in parts['log_scalars'].items()}
    info = parts['runtime_info']
    files = {key: info.pop(key) for key in list(info) if key.startswith(_FILES)}
    return {**parts, 'log_scalars': {key: log for key, log in logs.items() if log is not None}, 'files': files}


def _named(stored: Any, name: str) -> dict[str, Any]:
    part = stored.get(name) if isinstance(stored, dict) else None
    return {key: value for key, value in (part if isinstance(part, dict) else {}).items() if isinstance(key, str)}


def _history(stored: Any) -> HistoryBuffer | None:
    """A training log from its plain form or from stock MMEngine's; None if it is malformed."""
    if isinstance(stored, Foreign) and isinstance(stored.state, dict):
        names = ('_log_history', '_count_history', 'max_length')
        log, count, length = (stored.state.get(name) for name in names)
    elif isinstance(stored, dict) and _HISTORY in stored:
        log, count, length = (stored.get(name) for name in ('log', 'count', 'max_length'))
    else:
        return None
    if not isinstance(log, Tensor) or not isinstance(count, Tensor) or log.dim() != 1 or log.shape != count.shape:
        return None
    if log.is_complex() or count.is_complex() or type(length) is not int or not len(log) <= length < 2**48:
        return None
    return HistoryBuffer(log.numpy(), count.numpy(), length)


def check_resumable(
    checkpoint: dict[str, Any], source: str, run: dict[str, Any], shapes: list[torch.Size], work_dir: Path
) -> None:
    """Check that a run can resume from a checkpoint; checkpoint paths outside ``work_dir`` are dropped.

    Args:
        checkpoint: As returned by MMEngine's loader; changed in place.
        source: Its file, for errors.
        run: The state of the run's ``optimizer`` and ``param_schedulers``, whose structure the checkpoint's must have.
        shapes: Shapes of the optimizer's parameters.
        work_dir: The folder of the run's checkpoints.

    Raises:
        SetupError: If an entry is missing, of another type, or out of range.
    """
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    if meta is None or hub is None:
        raise SetupError(f'{source} cannot be resumed: it holds weights only; start from them with load_from.')
    numbers = {f'meta.{key}': (meta.get(key), 2**48) for key in ('epoch', 'iter')}
    numbers['meta.seed'] = meta.get('seed') or 0, 2**32
    faults = [f'{key} is {value!r:.80}' for key, (value, end) in numbers.items() if not _is_count(value, end)]
    scores = {key: value for key, value in hub['runtime_info'].items() if key.startswith('best_score')}
    faults += [f'{key} is {value!r:.80}' for key, value in scores.items() if not _is_like(value, 0.0)]
    faults += [fault for part in run if part in checkpoint and (fault := _fault(checkpoint[part], run[part], part))]
    if 'optimizer' in checkpoint and 'optimizer' in run and not faults:
        faults += _state_faults(checkpoint['optimizer'], shapes)
    if faults:
        raise SetupError(f'{source} cannot be resumed: its {faults[0]}.')
    for found, own in zip(checkpoint.get('param_schedulers', []), run.get('param_schedulers', []), strict=False):
        for key in found.keys() - own.keys():  # MMEngine would set them as attributes
            del found[key]
    files = hub.pop('files')
    hub['runtime_info'].update({key: value for key, value in files.items() if _is_inside(value, work_dir)})


def _is_count(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def _is_inside(value: Any, folder: Path) -> bool:
    if isinstance(value, list):
        return all(_is_count(step, 2**48) for step in value)
    return isinstance(value, str) and '\0' not in value and Path(value).resolve().parent == folder.resolve()


def _fault(found: Any, own: Any, where: str) -> str | None:
    """The first difference in structure between ``found`` and the run's own state, or None."""
    if not _is_like(found, own):
        return f"{where} is {found!r:.80}, and the run's is {own!r:.80}"
    if isinstance(own, (list, tuple)):
        if len(found) != len(own):
            return f"{where} has {len(found)} entries, and the run's {len(own)}"
        own, found = dict(enumerate(own)), dict(enumerate(found))
    if not isinstance(own, dict):
        return None
    lacking = [key for key, value in own.items() if isinstance(value, (dict, list)) and key not in found]
    if lacking:
        return f'{where} has no {lacking[0]}'
    return next(filter(None, (_fault(found[key], own[key], f'{where}.{key}') for key in own if key in found)), None)


def _state_faults(optimizer: dict[str, Any], shapes: list[torch.Size]) -> list[str]:
    """Faults in an optimizer's state of each parameter; averages must have the parameter's shape."""
    indices = [index for group in optimizer['param_groups'] for index in group['params']]
    shape_of = dict(zip(indices, shapes, strict=False))
    averages = 'momentum_buffer', 'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'square_avg'
    faults = []
    for index, state in optimizer['state'].items():
        if not isinstance(state, dict):
            faults.append(f'optimizer.state.{index!r:.80} is {state!r:.80}')
            continue
        for key, value in state.items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else value
            fits = value is None or isinstance(value, Tensor) or _is_like(value, 0.0)
            if not fits or (key in averages and isinstance(value, Tensor) and shape != shape_of.get(index, shape)):
                faults.append(f'optimizer.state.{index!r:.80}.{key!r:.80} is {shape!r:.80}')
    return faults


def _is_like(found: Any, own: Any) -> bool:
    if isinstance(own, (bool, type(None))) or isinstance(found, (bool, type(None))):
        return all(isinstance(value, (bool, type(None))) for value in (found, own))
    if isinstance(own, (int, float)):
        return isinstance(found, (int, float)) and math.isfinite(found)
    kinds = next((kinds for kinds in (dict, (list, tuple), Tensor, str) if isinstance(own, kinds)), object)
    return isinstance(found, kinds)


def to_plain(value: Any) -> Any:
    """``value`` with logs and arrays as tensors, numbers and strings, for ``torch.load(weights_only=True)``.

    Dicts and sequences lose entries of other types.
    """
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {_HISTORY: 1, 'log': _array(log), 'count': _array(count), 'max_length': value.max_length}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, dict):
        mapping = OrderedDict if isinstance(value, OrderedDict) else dict
        return mapping((k, to_plain(v)) for k, v in value.items() if _is_plain(v))
    if isinstance(value, (list, tuple)):
        sequence = tuple if isinstance(value, tuple) else list
        return sequence(to_plain(v) for v in value if _is_plain(v))
    kinds: tuple[Callable[[Any], Any], ...] = (bool, int, float, str, bytes)
    for kind in kinds:
        if isinstance(value, kind):  # type: ignore[arg-type]
            return kind(value)  # the plain type of a subclass, such as an enum
    return value


def _is_plain(value: Any) -> bool:
    kinds = (HistoryBuffer, np.generic, np.ndarray, dict, list, tuple, set, Tensor, str, bytes, int, float)
    return value is None or isinstance(value, kinds)


def _array(values: np.ndarray) -> Any:
    return torch.from_numpy(values.copy()) if values.dtype.kind in 'fiub' else values.tolist()
