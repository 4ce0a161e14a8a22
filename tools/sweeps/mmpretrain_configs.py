"""Every classification config that MMPretrain ships, distilled for one batch."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from experiments.readme import markdown
from mmengine.config import Config, ConfigDict
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from fnkd_plugin import distill
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import config_file, load_config, named_dicts, plain_model, without_pretrained
from sweeps import LABELS, fnkd_or_kd

SHIPPED = config_file('mmpretrain::.')
PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], channel_order='rgb')


def names() -> list[str]:
    """All config files except bases, relative to their folder."""
    files = (file.relative_to(SHIPPED) for file in SHIPPED.rglob('*.py'))
    return sorted(file.as_posix() for file in files if '_base_' not in file.parts)


def attempt(name: str) -> dict[str, Any]:
    """The entry of a config: ``method`` (FNKD, or KD with a ``reason``), or one of these keys with the cause.

    ``unreadable``: the config cannot be read; ``other``: the model is not a classifier; ``broken``: it also fails
    without a teacher; ``refused``: a SetupError; ``failed``: any other error.
    """
    try:
        cfg = load_config(f'mmpretrain::{name}')
    except Exception as error:  # any error of reading the config
        return dict(unreadable=_message(error))
    if not str(cfg.model.type).endswith('Classifier'):
        return dict(other=str(cfg.model.type))
    student = without_pretrained(plain_model(cfg))
    if not any(node.get('num_classes') for _, node in named_dicts(student)):
        return dict(other='features')
    try:
        model, method, reason = fnkd_or_kd(lambda method: distilled(cfg, student, method))
        loss = run_loss(model, some_batch(cfg, student))['loss_soft']
        if not torch.isfinite(loss):
            raise FloatingPointError(f'the soft loss is {loss}')
        return dict(method=method, **reason)
    except Exception as error:
        refused = isinstance(error, SetupError)
        # A refused model may need other labels than this batch's, so it is only built.
        if fails_alone(student, None if refused else some_batch(cfg, student)):
            return dict(broken=_message(error))
        return {'refused' if refused else 'failed': _message(error)}


def _message(error: Exception) -> str:
    if isinstance(error, SetupError):
        return str(error)
    # Paths of MMPretrain's files without the machine's prefix.
    return f'{type(error).__name__}: {error}'.splitlines()[0].replace(f'{SHIPPED}/', '')


def some_batch(cfg: Config, student: ConfigDict) -> dict[str, Any]:
    """Two random images of two classes, in the crop size of the training pipeline."""
    sizes = [node.get('crop_size', node.get('scale')) for _, node in named_dicts(cfg.get('train_dataloader'))]
    side = next((size for size in reversed(sizes) if isinstance(size, int)), 32)
    images = torch.randint(0, 256, (2, _channels(student), side, side), dtype=torch.uint8)
    return dict(inputs=images, data_samples=[DataSample().set_gt_label(label) for label in range(2)])


def _channels(student: ConfigDict) -> int:
    return len(student.get('data_preprocessor', {}).get('mean') or PIXELS['mean'])


def distilled(cfg: Config, student: ConfigDict, method: str) -> nn.Module:
    """The model of the mixed config. Its teacher is a small module with a last linear layer."""
    channels = _channels(student)
    classes = next(node['num_classes'] for _, node in named_dicts(student) if node.get('num_classes'))
    fn = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    pixels = {key: value[:channels] if isinstance(value, list) else value for key, value in PIXELS.items()}
    mixed = distill(cfg, dict(type='CallableTeacher', fn=fn, **pixels), method)
    mixed.model.update(student=student, pixels=pixels)
    return MODELS.build(mixed.model)


@torch.no_grad()
def run_loss(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The losses of a batch."""
    return model(**model.data_preprocessor(batch, training=True), mode='loss')


def fails_alone(student: ConfigDict, batch: dict[str, Any] | None) -> bool:
    """Whether building the plain model, or computing its loss on a batch if one is given, fails as well."""
    try:
        model = MODELS.build(student)
        if batch is not None:
            run_loss(model, batch)
    except Exception:
        return True
    return False


OUTCOMES = dict(
    refused='refused',
    broken='also fails without a teacher',
    failed='fails only with a teacher',
    other='not a classifier',
    unreadable='cannot be read',
)


def outcome(entry: Mapping[str, Any]) -> str:
    """The outcome of a config, for tables."""
    if 'method' in entry:
        return LABELS[entry['method']]
    return next(label for key, label in OUTCOMES.items() if key in entry)


def table(entries: Mapping[str, dict]) -> str:
    """The counts of outcomes, and each reason against FNKD with its configs."""
    counts = Counter(map(outcome, entries.values()))
    order = [*LABELS.values(), *OUTCOMES.values()]
    counted = markdown(['configs', ''], [(counts[label], label) for label in order if counts[label]], 'rl')
    reasons = defaultdict(list)
    for name, entry in sorted(entries.items()):
        why = next(
            (entry[key] for key in ('reason', 'refused', 'broken', 'failed', 'unreadable') if key in entry), None
        )
        if why is not None:
            reasons[outcome(entry), why.replace('|', '/')].append(name.removesuffix('.py'))
    rows = [(*key, ', '.join(reasons[key])) for key in sorted(reasons, key=lambda key: order.index(key[0]))]
    return f'{counted}\n\n{markdown(["", "why", "configs"], rows, "lll")}'
