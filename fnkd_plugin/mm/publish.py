"""Published checkpoints: weights and a few metadata, with a content hash in the file name."""

import datetime
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmpretrain
import safetensors.torch
import torch
from mmengine.logging import print_log
from torch import Tensor

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.checkpoints import read_checkpoint, to_plain
from fnkd_plugin.weights import TIMM_EMA, find_state_dict

_MMENGINE_EMA = 'ema_state_dict'
_TIME = re.compile(r'(\d{8})_\d{6}$')


def publish(source: str | Path, out: str | Path, *, ema: bool = False, timm: bool = False) -> Path:
    """Write the weights of a checkpoint as ``{name}_{date}-{sha256[:8]}.pth`` or ``.safetensors``.

    The date is that of the training if the checkpoint has it, else today; the hash is that of the written file. The
    file also has the class names, numbers such as the epoch, and versions.

    Args:
        source: The checkpoint, read without running code.
        out: A folder, in which the file is named after the experiment, or a file name, whose suffix sets the format.
            Stock MMPretrain reads ``.pth`` only; timm reads both.
        ema: Publish the EMA weights instead of the trained ones.
        timm: Use timm's own keys, which a ``TimmStudent`` and a ``TimmClassifier`` have up to a prefix. They are not
            compared with a model; timm does that when it loads the file.

    Returns:
        The path of the file.

    Raises:
        SetupError: If the checkpoint cannot be read, has no EMA weights, or has the keys of a backbone of MMPretrain
            and ``timm`` is set, or the file exists or cannot be written.
    """
    checkpoint = read_checkpoint(source)
    meta = checkpoint.get('meta')
    meta = to_plain(meta) if isinstance(meta, dict) else {}
    weights = _chosen_weights(checkpoint, source, ema)
    if timm:
        weights = _timm_keys(weights, source)
    folder, name, suffix = _target(out, _experiment(meta) or Path(source).stem)
    content = _serialised(weights, _public_meta(meta, source), suffix)
    digest = hashlib.sha256(content).hexdigest()[:8]
    path = folder / f'{name}_{_date(meta)}-{digest}{suffix}'
    _write_new(path, content)
    return path


def _chosen_weights(checkpoint: Mapping[str, Any], source: str | Path, ema: bool) -> dict[str, Tensor]:
    averaged = [key for key in (_MMENGINE_EMA, *TIMM_EMA) if isinstance(checkpoint.get(key), dict)]
    if ema:
        if not averaged:
            raise SetupError(f'Checkpoint {source} holds no EMA weights; publish it without --ema.')
        # MMEngine stores the averaged weights as the model's own, and timm's are found first.
        return find_state_dict(checkpoint, source)
    trained = {key: value for key, value in checkpoint.items() if key not in averaged}
    if averaged:
        print_log(f'{source} also holds EMA weights, which are left out; --ema publishes them instead.', 'current')
    if _MMENGINE_EMA in averaged:
        own = {k.removeprefix('module.'): v for k, v in checkpoint[_MMENGINE_EMA].items() if k.startswith('module.')}
        trained['state_dict'] = {**trained['state_dict'], **own}
    return find_state_dict(trained, source)


def _timm_keys(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    own = {key: value for key, value in state.items() if not key.startswith('data_preprocessor.')}
    foreign = [key for key in own if key.startswith('backbone.')]  # of MMPretrain's classifiers
    if foreign:
        raise SetupError(
            f'{source}: timm has no key for {foreign[0]}; its keys fit a TimmStudent and a TimmClassifier. Publish it '
            'without --timm.'
        )
    nested = all(key.startswith('model.') for key in own)
    return {key.removeprefix('model.'): value for key, value in own.items()} if nested else own


def _public_meta(meta: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    public = {k: v for k, v in meta.items() if isinstance(v, (int, float)) or k.endswith('_version')}
    public.setdefault('mmpretrain_version', mmpretrain.__version__)
    dataset = meta.get('dataset_meta') or {}
    if not isinstance(dataset, dict):
        raise SetupError(f'Checkpoint {source}: its dataset_meta is not a dict, but {dataset!r:.80}; remove it.')
    classes = dataset.get('classes')
    if classes is None:
        return public
    if not isinstance(classes, (list, tuple)):
        raise SetupError(f'Checkpoint {source}: its classes are not a list, but {classes!r:.80}; remove them.')
    return {**public, 'dataset_meta': dict(classes=[str(name) for name in classes])}


def _target(out: str | Path, experiment: str) -> tuple[Path, str, str]:
    path = Path(out)
    if os.path.isdir(out) or str(out).endswith(os.sep):
        return path, experiment, '.pth'
    if path.suffix in ('.pth', '.safetensors'):
        return path.parent, path.stem, path.suffix
    return path.parent, path.name, '.pth'


def _experiment(meta: Mapping[str, Any]) -> str:
    """The experiment's name as a file name, without folders."""
    last = re.split(r'[/\\]', str(meta.get('experiment_name', '')))[-1]
    # MMEngine appends the start time of the training.
    return _TIME.sub('', re.sub(r'[^\w.-]', '', last)).rstrip('_').lstrip('.')


def _date(meta: Mapping[str, Any]) -> str:
    found = _TIME.match(str(meta.get('time', '')))
    return found[1] if found else datetime.date.today().strftime('%Y%m%d')


def _serialised(weights: Mapping[str, Tensor], meta: dict[str, Any], suffix: str) -> bytes:
    # Copies: safetensors needs contiguous tensors that do not share memory.
    state = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    if suffix == '.safetensors':
        texts = {key: json.dumps(value) for key, value in meta.items()}
        return safetensors.torch.save(state, {'format': 'pt', **texts})
    buffer = io.BytesIO()
    torch.save({'meta': meta, 'state_dict': state}, buffer)
    return buffer.getvalue()


def _write_new(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('xb') as file:
            try:
                file.write(content)
                file.flush()
            except BaseException:  # no partial file under the final name
                path.unlink()
                raise
    except OSError as error:
        fault, fix = f'cannot be written ({error.strerror})', 'choose another OUT'
        if isinstance(error, FileExistsError) and path.is_file():
            fault, fix = 'exists, with the same weights', 'published files are never overwritten'
        raise SetupError(f'{path} {fault}; {fix}.') from error
