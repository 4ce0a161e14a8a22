"""Every classification config that MMPretrain ships, distilled for one batch."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from fnkd_plugin import distill
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import config_file, load_config, named_dicts, plain_model, without_pretrained
from sweeps.methods import SAID, fnkd_or_kd

SHIPPED = config_file('mmpretrain::.')
PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], channel_order='rgb')


def names() -> list[str]:
    """All config files but bases, relative to their folder."""
    files = (file.relative_to(SHIPPED) for file in SHIPPED.rglob('*.py'))
    return sorted(file.as_posix() for file in files if '_base_' not in file.parts)


def attempt(name: str) -> dict[str, Any]:
    """``method``: FNKD, or KD and the ``reason``; or one of these.

    ``unreadable``: the file; ``other``: a model for something else; ``broken``: it fails without a teacher, too;
    ``refused``; ``failed``.
    """
    try:
        cfg = load_config(f'mmpretrain::{name}')
    except Exception as error:  # whatever a file does when it is read
        return dict(unreadable=_said(error))
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
        # What is refused may want other labels than this batch's; but it must be built.
        if fails_alone(student, None if refused else some_batch(cfg, student)):
            return dict(broken=_said(error))
        return {'refused' if refused else 'failed': _said(error)}


def _said(error: Exception) -> str:
    if isinstance(error, SetupError):
        return str(error)
    # Files of MMPretrain by their place in it, not on this machine.
    return f'{type(error).__name__}: {error}'.splitlines()[0].replace(f'{SHIPPED}/', '')


def some_batch(cfg: Config, student: ConfigDict) -> dict[str, Any]:
    """Two random images of the size that the training pipeline crops to, of two classes."""
    sizes = [node.get('crop_size', node.get('scale')) for _, node in named_dicts(cfg.get('train_dataloader'))]
    side = next((size for size in reversed(sizes) if isinstance(size, int)), 32)
    images = torch.randint(0, 256, (2, _channels(student), side, side), dtype=torch.uint8)
    return dict(inputs=images, data_samples=[DataSample().set_gt_label(label) for label in range(2)])


def _channels(student: ConfigDict) -> int:
    return len(student.get('data_preprocessor', {}).get('mean') or PIXELS['mean'])


def distilled(cfg: Config, student: ConfigDict, method: str) -> nn.Module:
    """The model of the mixed config. Any module with a last affine layer will do as its teacher."""
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
    """Whether the plain model cannot be built either, or, if there is a batch, has no loss."""
    try:
        model = MODELS.build(student)
        if batch is not None:
            run_loss(model, batch)
    except Exception:
        return True
    return False


OUTCOMES = dict(
    refused='refused',
    broken='fails without a teacher, too',
    failed='fails with a teacher alone',
    other='no classifier',
    unreadable='cannot be read',
)


def outcome(entry: Mapping[str, Any]) -> str:
    """What became of a config."""
    if 'method' in entry:
        return SAID[entry['method']]
    return next(said for key, said in OUTCOMES.items() if key in entry)


def table(entries: Mapping[str, dict]) -> str:
    """Counts, and why not FNKD; each reason with its configs."""
    counts = Counter(map(outcome, entries.values()))
    order = [*SAID.values(), *OUTCOMES.values()]
    lines = ['| configs | |', '|--:|---|', *(f'| {counts[said]} | {said} |' for said in order if counts[said])]
    reasons = defaultdict(list)
    for name, entry in sorted(entries.items()):
        why = next(
            (entry[key] for key in ('reason', 'refused', 'broken', 'failed', 'unreadable') if key in entry), None
        )
        if why is not None:
            reasons[outcome(entry), why.replace('|', '/')].append(name.removesuffix('.py'))
    lines += ['', '| | why | configs |', '|---|---|---|']
    for (said, why), found in sorted(reasons.items(), key=lambda item: order.index(item[0][0])):
        lines.append(f'| {said} | {why} | {", ".join(found)} |')
    return '\n'.join(lines)
