"""All that modules which also work without OpenMMLab use of it.

Where no stack is installed nothing is registered, messages go to Python's own logging, data sets have no registry, and
there is no Runner whose checkpoints could remember anything.
"""

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, distributed

from fnkd_plugin._stack import OPENMMLAB_INSTALLED
from fnkd_plugin.errors import SetupError

if TYPE_CHECKING or OPENMMLAB_INSTALLED:
    from mmengine.logging import MessageHub, print_log
    from mmpretrain.registry import DATASETS, MODELS
else:

    def print_log(msg: str, logger: str | None = None, level: int = logging.INFO) -> None:
        """MMEngine's function of this name, for Python's own logging."""
        logging.getLogger('fnkd_plugin').log(level, msg)


__all__ = ['all_reduce', 'build_model', 'print_log', 'register_model', 'registered_dataset', 'run_messages']

Kind = TypeVar('Kind', bound=type)


def register_model(kind: Kind) -> Kind:
    """A class decorator: configs know the class by its name."""
    return MODELS.register_module(module=kind) if OPENMMLAB_INSTALLED else kind


def build_model(config: dict) -> Any:
    """What the registry makes of a config.

    Raises:
        SetupError: Where no stack is installed.
    """
    if not OPENMMLAB_INSTALLED:
        raise SetupError(f'{config} is a config, which needs MMPretrain to be built; give the object itself.')
    return MODELS.build(config)


def registered_dataset(name: str) -> type | None:
    """The class of a registered data set, or None."""
    return DATASETS.get(name) if OPENMMLAB_INSTALLED else None


def run_messages() -> Any:
    """The message hub of the current run, which its checkpoints hold; None outside a Runner."""
    if not OPENMMLAB_INSTALLED:
        return None
    hub = MessageHub.get_current_instance()
    # Outside a Runner the current hub is MMEngine's own default, which outlives any one training.
    return None if hub.instance_name == 'mmengine' else hub


def all_reduce(tensor: Tensor, op: str = 'sum') -> None:
    """Sum a tensor over all processes, or take the ``'max'`` of them, in place; nothing where there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor, getattr(distributed.ReduceOp, op.upper()))
