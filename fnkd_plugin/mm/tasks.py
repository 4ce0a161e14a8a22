"""Checks that a model of MMPretrain is a single-label classifier, and its forward pass to logits."""

import functools
from collections.abc import Callable
from typing import Any

from mmengine.model import is_model_wrapper
from mmpretrain.models import heads
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError

# Heads whose output is not a softmax over classes, though their last layer may be affine.
_OTHER_TASKS = {
    'MultiLabelClsHead': 'a multi-label classifier',
    'MultiTaskHead': 'a multi-task model',
    'RegressionHead': 'a regression model',
}
# Heads with a mode (set by this attribute) that averages two heads, whose loss MMPretrain does not implement.
_NOT_TRAINED = {'EfficientFormerClsHead': 'dist', 'LeViTClsHead': 'distillation'}


def other_task(head: type) -> str | None:
    """The task of a head for anything but single-label classification, such as 'a regression model', or None."""
    for name, task in _OTHER_TASKS.items():
        kind = getattr(heads, name, None)
        if kind is not None and issubclass(head, kind):
            return task
    return None


def check_single_label(owner: str, model: nn.Module) -> None:
    """Refuse models for other tasks.

    Raises:
        SetupError: If the model's head is for another task. It begins with ``owner``, such as 'Distiller: the student'.
    """
    head = getattr(model, 'head', None)
    task = other_task(type(head))
    if task is not None:
        raise SetupError(
            f'{owner} is {task} ({type(head).__name__}); soft targets are distributions over the classes of a '
            'single-label classifier. Give a model with such a head.'
        )


def check_trainable(owner: str, model: nn.Module) -> None:
    """Refuse models whose own loss MMPretrain does not implement.

    Raises:
        SetupError: If the model's head averages two heads. It begins with ``owner``.
    """
    head = getattr(model, 'head', None)
    for name, flag in _NOT_TRAINED.items():
        kind = getattr(heads, name, None)
        if kind is not None and isinstance(head, kind) and getattr(head, flag):
            raise SetupError(
                f'{owner} has a {name} of two heads, which MMPretrain does not train; give it one: '
                '--cfg-options model.head.distillation=False.'
            )


def adds_outputs(model: nn.Module) -> bool:
    """Whether the model's ``predict`` sums the logits of two classifiers (Conformer)."""
    return isinstance(getattr(model, 'head', None), heads.ConformerHead)


def forward_to_logits(model: nn.Module) -> Callable[[Tensor], Any]:
    """The function from images to the logits whose softmax the model's ``predict`` returns."""
    forward = functools.partial(model, mode='tensor')
    if not adds_outputs(model):
        return forward

    def summed(images: Tensor) -> Any:
        return sum(forward(images))

    return summed


def unwrapped(model: Any) -> Any:
    """The model inside DDP or another model wrapper of MMEngine."""
    return model.module if is_model_wrapper(model) else model
