"""Which models of MMPretrain distilling is for, classifiers of one label per image, and what they predict with."""

import functools
from collections.abc import Callable
from typing import Any

from mmpretrain.models import heads
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError

# Heads whose output is not a softmax over classes, though an affine layer may be their last.
_OTHER_TASKS = {
    'MultiLabelClsHead': 'a multi-label classifier',
    'MultiTaskHead': 'a multi-task model',
    'RegressionHead': 'a regression model',
}
# Heads that average two and whose loss MMPretrain does not implement; and the flag of it.
_NOT_TRAINED = {'EfficientFormerClsHead': 'dist', 'LeViTClsHead': 'distillation'}


def other_task(head: type) -> str | None:
    """What models with a head of this class are, if no single-label classifiers: 'a regression model'."""
    for name, task in _OTHER_TASKS.items():
        kind = getattr(heads, name, None)
        if kind is not None and issubclass(head, kind):
            return task
    return None


def check_single_label(owner: str, model: nn.Module) -> None:
    """Refuse models of MMPretrain for other tasks; the error begins with ``owner``, such as 'Distiller: the student'.

    Raises:
        SetupError: If the model's head is one of another task.
    """
    head = getattr(model, 'head', None)
    task = other_task(type(head))
    if task is not None:
        raise SetupError(
            f'{owner} is {task} ({type(head).__name__}); soft targets are distributions over the classes of a '
            'single-label classifier. Give a model with such a head.'
        )


def check_trainable(owner: str, model: nn.Module) -> None:
    """Refuse models of MMPretrain whose own loss is not implemented; the error begins with ``owner``.

    Raises:
        SetupError: If the model's head averages two heads that MMPretrain does not train.
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
    """Whether the model's ``predict`` adds up what its head gives: Conformer's two classifiers."""
    return isinstance(getattr(model, 'head', None), heads.ConformerHead)


def forward_to_logits(model: nn.Module) -> Callable[[Tensor], Any]:
    """The function from images to what the model's ``predict`` takes the softmax of."""
    forward = functools.partial(model, mode='tensor')
    if not adds_outputs(model):
        return forward

    def summed(images: Tensor) -> Any:
        return sum(forward(images))

    return summed
