"""Which models distilling is for: classifiers of one label per image."""

from mmpretrain.models import heads
from torch import nn

from fnkd_plugin.errors import SetupError

# Heads whose output is no softmax over classes, though an affine layer may well be their last.
_OTHER_TASKS = {
    'MultiLabelClsHead': 'a multi-label classifier',
    'MultiTaskHead': 'a multi-task model',
    'RegressionHead': 'a regression model',
}


def other_task(head: type) -> str | None:
    """What models with a head of this class are, if no single-label classifiers: 'a regression model'."""
    for name, task in _OTHER_TASKS.items():
        kind = getattr(heads, name, None)
        if kind is not None and issubclass(head, kind):
            return task
    return None


def check_single_label(owner: str, model: nn.Module) -> None:
    """Refuse models of MMPretrain for other tasks; the error begins with ``owner``, say 'Distiller: the student'.

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
