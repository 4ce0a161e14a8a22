"""Every family of timm's models, by its smallest classifier, as a student and as a teacher."""

import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import timm
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import scale_by_feature_norm
from fnkd_plugin.mm.mix import METHODS
from fnkd_plugin.readers import AffineReader, find_last_affine, probe
from sweeps.methods import SAID, fnkd_or_kd

CLASSES = 5
SIDE = 128
"""Of the images, in pixels; a model that does not take such has images of its own size."""
LARGE = 30_000_000
"""Models of more parameters are cut to a depth of 2, if they take a depth."""
PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


class MismatchError(Exception):
    """What must hold does not."""


def names() -> list[str]:
    """timm's modules of models."""
    return timm.list_modules()


def attempt(family: str) -> dict[str, Any]:
    """``student`` and ``teacher``: the method that the model took in that role; or ``refused``, or ``failed``.

    ``reason`` says why not FNKD; ``head`` is the last affine layer's type, ``rescaling`` the relative error of
    logits that are rescaled by the feature norm.
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
    except Exception as error:  # whatever a model does
        found['failed'] = f'{type(error).__name__}: {error}'.splitlines()[0]
    return found


def smallest(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a family's classifiers the one of fewest parameters, then of smallest images; if there is none, of its models.

    Returns:
        The arguments that make it, and what is told of it: its name, options, image size in pixels, parameters.
    """
    best: tuple[bool, int, int, str] = (True, sys.maxsize, 0, '')
    for name in timm.list_models(module=family):
        with suppress(_TooLargeError), _at_most(best[1] if not best[0] else sys.maxsize):
            model = _on_meta(name)
            best = min(best, (model.num_classes != CLASSES, _size(model), model.pretrained_cfg['input_size'][-1], name))
    _, parameters, side, name = best
    options = {}
    if parameters > LARGE:
        with suppress(TypeError):
            parameters = _size(_on_meta(name, depth=2))
            options = dict(depth=2)
    if not timm.get_pretrained_cfg(name).fixed_input_size:
        with suppress(Exception):  # images that do not fit fail in as many ways as there are models
            _on_meta(name, **options).eval()(torch.zeros(1, 3, SIDE, SIDE, device='meta'))
            side = SIDE
    return dict(model=name, **options), dict(model=name, options=options, size=side, parameters=parameters)


def _on_meta(model: str, **options: Any) -> nn.Module:
    """The model without memory for its weights."""
    with torch.device('meta'), _NoInitialValues():
        return _plain(model, **options)


class _NoInitialValues(TorchFunctionMode):
    """On the meta device, drawing the initial values costs most of the time, and does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, '__name__', '') in ('uniform_', 'normal_', 'erfinv_', 'mul_', 'add_', 'clamp_'):
            return args[0] if args else kwargs['tensor']
        return func(*args, **kwargs)


def _plain(model: str, **options: Any) -> nn.Module:
    return timm.create_model(model, num_classes=CLASSES, **options)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _TooLargeError(Exception):
    pass


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Building a module of more parameters stops at once, which saves most of the time of choosing."""
    count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        if count > limit:
            raise _TooLargeError

    with register_module_parameter_registration_hook(add):
        yield


def as_student(model: dict[str, Any], images: Tensor, weights: Path) -> dict[str, Any]:
    """Distil it from a tiny teacher, and leave its weights in a file from which new students start."""
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
    _require(torch.equal(again, logits), 'a student that starts from its own weights is another')
    MODELS.build(_student(**model, checkpoint=weights, num_classes=CLASSES + 1))
    return found


def as_teacher(model: dict[str, Any], images: Tensor, weights: Path) -> dict[str, Any]:
    """Compare its predictions with those of timm's model, whose keys the file must have, and let it teach."""
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
    """One backward pass of the soft loss: the distilled model, the method, and why not FNKD.

    Raises:
        SetupError: If KD is refused, too.
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
    """How far logits that are rescaled afterwards are from those of the rescaled feature, relative to the largest."""
    reader = AffineReader(layer)
    reader.reading = True
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
    """Random values for what starts from zeros (biases, some heads), so that their part is seen."""
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
    """Counts, then a row for each family."""
    roles = {role: [outcome(entry, role) for entry in entries.values()] for role in ('student', 'teacher')}
    lines = ['| | ' + ' | '.join(f'as {role}' for role in roles) + ' |', '|---|--:|--:|']
    for said in dict.fromkeys(said for outcomes in roles.values() for said in sorted(outcomes)):
        lines.append(f'| {said} | ' + ' | '.join(str(outcomes.count(said)) for outcomes in roles.values()) + ' |')
    lines += ['', '| family | model | parameters | pixels | last affine layer | as student | as teacher |']
    lines += ['|---|---|--:|--:|---|---|---|']
    for family, entry in sorted(entries.items()):
        options = ', '.join(f' {key}={value}' for key, value in entry['options'].items())
        cells = [
            family,
            entry['model'] + options,
            f'{entry["parameters"]:,}',
            entry['size'],
            entry.get('head') or 'none',
        ]
        lines.append('| ' + ' | '.join(map(str, [*cells, *(outcome(entry, role) for role in roles)])) + ' |')
    return '\n'.join(lines)


def outcome(entry: Mapping[str, Any], role: str) -> str:
    """What became of a model in a role."""
    if role in entry:
        return SAID[entry[role]]
    return f'refused: {entry["refused"]}' if 'refused' in entry else f'failed: {entry["failed"]}'
