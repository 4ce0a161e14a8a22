"""The smallest classifier of every timm family, as a student and as a teacher."""

import math
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from experiments.readme import markdown
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import scale_by_feature_norm
from fnkd_plugin.mm.distill_config import METHODS
from fnkd_plugin.readers import AffineReader, find_last_affine, probe
from sweeps import LABELS, fnkd_or_kd

CLASSES = 5
SIDE = 128
"""Image size in pixels; models with a fixed image size use their own."""
LARGE = 30_000_000
"""Models with more parameters are built with ``depth=2``, if they have that option."""
PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


class MismatchError(Exception):
    """A check failed."""


def names() -> list[str]:
    """The names of timm's model modules."""
    return timm.list_modules()


def attempt(family: str) -> dict[str, Any]:
    """The entry of a family: ``student`` and ``teacher`` hold the method that works in that role.

    ``reason`` is why FNKD does not, ``head`` the type of the last affine layer, and ``rescaling`` the relative error of
    logits that are rescaled by the feature norm. ``refused`` or ``failed`` hold the error of a family that fails.
    """
    found: dict[str, Any] = {}
    try:
        model, found = smallest(family)
        images = torch.randn(2, 3, found['size'], found['size'], generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / 'weights.pth'
            found |= as_student(model, images, weights)
            found |= as_teacher(model, images, weights)
    except SetupError as error:
        found['refused'] = str(error)
    except Exception as error:  # any error of a model
        found['failed'] = f'{type(error).__name__}: {error}'.splitlines()[0]
    return found


def smallest(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The family's classifier (if none, model) with the fewest parameters, in a tie the smallest images.

    Returns:
        The arguments of ``create_model``, and the entry's name, options, image size in pixels and parameters.
    """
    found: list[tuple[bool, int, int, str]] = []
    for name in timm.list_models(module=family):
        model = _on_meta(name)
        found.append((model.num_classes != CLASSES, _size(model), model.pretrained_cfg['input_size'][-1], name))
    _, parameters, side, name = min(found)
    options = {}
    if parameters > LARGE:
        with suppress(TypeError):
            parameters = _size(_on_meta(name, depth=2))
            options = dict(depth=2)
    if not timm.get_pretrained_cfg(name).fixed_input_size:
        with suppress(Exception):  # models raise different errors for unsupported image sizes
            _on_meta(name, **options).eval()(torch.zeros(1, 3, SIDE, SIDE, device='meta'))
            side = SIDE
    return dict(model=name, **options), dict(model=name, options=options, size=side, parameters=parameters)


def _on_meta(model: str, **options: Any) -> nn.Module:
    """The model on the meta device, without memory for its weights."""
    with torch.device('meta'):
        return _plain(model, **options)


def _plain(model: str, **options: Any) -> nn.Module:
    return timm.create_model(model, num_classes=CLASSES, **options)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def as_student(model: dict[str, Any], images: Tensor, weights: Path) -> dict[str, Any]:
    """Distil the model from a tiny teacher, save its weights and load them into new students."""
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    student, method, reason = distil(_student(**model), dict(type='CallableTeacher', fn=tiny, **PIXELS), images)
    found = dict(student=method, head=None, **reason)
    _fill_zeros(student)
    layer = find_last_affine(*probe(student.model, student.model, images.shape[-1]))
    if layer is not None:
        found |= dict(head=type(layer).__name__, rescaling=rescaling_error(student, layer, images))
        _require(found['rescaling'] < 1e-5, 'rescaled logits are not those of the rescaled feature')
    logits = _logits(student, images)
    torch.save(student.state_dict(), weights)
    del student
    again = _logits(MODELS.build(_student(**model, checkpoint=weights)), images)
    _require(torch.equal(again, logits), 'a student that loads its own weights has other outputs')
    MODELS.build(_student(**model, checkpoint=weights, num_classes=CLASSES + 1))
    return found


def as_teacher(model: dict[str, Any], images: Tensor, weights: Path) -> dict[str, Any]:
    """Check keys and predictions against timm's model, then distil a tiny student from it."""
    plain = _plain(**model)
    state = torch.load(weights)
    _require(list(state) == list(plain.state_dict()), "the student's keys are not timm's")
    plain.load_state_dict(state)
    expected = _logits(plain, images)
    del plain, state
    teacher = MODELS.build(dict(type='TimmTeacher', **model, checkpoint=weights))
    teacher.prepare(teacher.pixels)
    _require(torch.equal(teacher.predict(images).logits, expected), "the teacher's predictions are not its model's")
    _, method, _ = distil(_student('test_resnet'), teacher, images)
    return dict(teacher=method)


def distil(student: dict, teacher: Any, images: Tensor) -> tuple[Any, str, dict[str, str]]:
    """Run one backward pass of the soft loss; the model, the method, and the reason against FNKD.

    Raises:
        SetupError: If KD is not possible either.
    """

    def build(method: str) -> Any:
        return MODELS.build(dict(type='Distiller', student=student, teacher=teacher, head=METHODS[method]))

    model, method, reason = fnkd_or_kd(build)
    samples = [DataSample().set_gt_label(label) for label in range(len(images))]
    model.train()(images, samples, mode='loss')['loss_soft'].backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    _require(0 < largest < math.inf, f'the largest gradient of the soft loss is {largest}')
    model.zero_grad()
    return model, method, reason


def rescaling_error(student: nn.Module, layer: nn.Module, images: Tensor, tau: float = 1.0) -> float:
    """The largest difference of rescaled logits from the logits of the rescaled feature, over the largest logit."""
    reader = AffineReader(layer)
    with reader:
        logits = _logits(student, images)
    read = reader.take()
    assert read is not None
    _require(torch.equal(logits, read.logits), "the last affine layer's output is not the model's")
    norms = read.feature_norm
    hook = layer.register_forward_pre_hook(lambda _, args: (_scaled(args[0], tau),))
    expected = _logits(student, images)
    hook.remove()
    with torch.no_grad():
        found = scale_by_feature_norm(logits, norms, read.origin, tau, mode='normalize')
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def _fill_zeros(model: nn.Module) -> None:
    """Fill parameters that are all zero (biases, some heads) with random values, so that they matter."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)


def _scaled(feature: Tensor, norm: float) -> Tensor:
    return norm * nn.functional.normalize(feature.flatten(1), dim=1).view_as(feature)


def _student(model: str, num_classes: int = CLASSES, **options: Any) -> dict:
    preprocessor = dict(**PIXELS, to_rgb=True)
    return dict(type='TimmStudent', model=model, num_classes=num_classes, data_preprocessor=preprocessor, **options)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return model.eval()(images)


def _require(true: bool | Tensor, otherwise: str) -> None:
    if not true:
        raise MismatchError(otherwise)


def table(entries: Mapping[str, dict]) -> str:
    """The counts of outcomes, then a row for each family."""
    roles = {role: [outcome(entry, role) for entry in entries.values()] for role in ('student', 'teacher')}
    labels = dict.fromkeys(label for outcomes in roles.values() for label in sorted(outcomes))
    counts = [[label, *(outcomes.count(label) for outcomes in roles.values())] for label in labels]
    rows = []
    for family, entry in sorted(entries.items()):
        model = entry['model'] + ', '.join(f' {key}={value}' for key, value in entry['options'].items())
        size = f'{entry["parameters"]:,}', entry['size']
        rows.append([family, model, *size, entry.get('head') or 'none', *(outcome(entry, role) for role in roles)])
    heads = ['family', 'model', 'parameters', 'pixels', 'last affine layer', 'as student', 'as teacher']
    return f'{markdown(["", "as student", "as teacher"], counts)}\n\n{markdown(heads, rows, "llrrlll")}'


def outcome(entry: Mapping[str, Any], role: str) -> str:
    """The outcome of a model in a role, for tables."""
    if role in entry:
        return LABELS[entry[role]]
    return f'refused: {entry["refused"]}' if 'refused' in entry else f'failed: {entry["failed"]}'
