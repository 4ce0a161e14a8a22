"""Cache fingerprint: the data, teacher and software of a cache as plain data."""

from hashlib import sha256
from importlib import import_module
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay.description import describe_pipeline, leaves, text_of

_SOFTWARE = ('torch', 'torchvision', 'numpy', 'PIL', 'cv2', 'mmcv', 'mmpretrain')


def describe_data(dataset: Any) -> dict[str, Any]:
    """The images, their labels and their pipeline.

    Images are described by their paths below ``data_root``, or by their pixels if they are in memory.

    Raises:
        SetupError: If ``num_batch_per_epoch`` exceeds the number of images.
    """
    whole = getattr(dataset, '_dataset', dataset)  # MMEngine's num_batch_per_epoch wraps the data set
    if len(whole) < len(dataset):
        raise SetupError(
            f'train_dataloader.num_batch_per_epoch: its batches hold {len(dataset)} images, but the data set has '
            f'{len(whole)}; use fewer.'
        )
    return dict(describe_pipeline(dataset), annotations=_annotations(dataset))


def describe_weights(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers with their names."""
    digest = sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}\n'.encode())
        # As bytes: NumPy does not have bfloat16.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_software() -> dict[str, str]:
    """Versions of the packages that affect pixels and logits."""
    return {name: import_module(name).__version__ for name in _SOFTWARE}


def differences(stored: Any, found: Any, name: str = '') -> list[str]:
    """A message for each entry that differs; for lists, only the first one."""
    if isinstance(stored, dict) and isinstance(found, dict):
        parts = [differences(stored.get(k), found.get(k), f'{name}.{k}' if name else k) for k in {**stored, **found}]
        return [one for part in parts for one in part]
    if isinstance(stored, list) and isinstance(found, list):
        pairs = enumerate(zip_longest(stored, found))
        return next((differences(a, b, f'{name}[{i}]') for i, (a, b) in pairs if a != b), [])
    return [] if stored == found else [f'{name}: {_short(stored)} in the cache, {_short(found)} now']


def plain(node: Any) -> Any:
    """A part of a config in JSON's types; classes as their dotted names."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    if isinstance(node, type):
        return f'{node.__module__}.{node.__qualname__}'
    return node if node is None or isinstance(node, (bool, int, float, str)) else text_of(node)


def _annotations(dataset: Any) -> str:
    roots = [str(leaf.data_root) for leaf in leaves(dataset) if getattr(leaf, 'data_root', None)]
    digest = sha256()
    parts = [dataset] if hasattr(dataset, 'get_data_info') else list(leaves(dataset))
    for part in parts:
        for i in range(len(part)):
            info = part.get_data_info(i)
            path = str(info.get('img_path', ''))
            for root in roots:
                path = path.replace(root, '', 1)
            label = np.asarray(info.get('gt_label', info.get('gt_score'))).tolist()
            digest.update(f'{path.lstrip("/")}\t{label}\n'.encode())
            if info.get('img') is not None:
                digest.update(np.ascontiguousarray(info['img']).tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f'{text[:200]}...'
