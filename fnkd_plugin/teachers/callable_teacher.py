"""A teacher from any module or function."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher, sharing_weights


class CallableTeacher(ModelTeacher):
    """A trained ``nn.Module``, or any function of images, as a teacher.

    A module is run as a frozen copy that shares its weights; it has a feature norm if it has a last affine layer. A
    function has no feature norm, so FNKD is not available, and it must handle devices and train/eval modes itself.

    Args:
        fn: Images [N, C, H, W] to logits [N, K]; or its import path, for configs.
        mean: The mean of its normalisation. If unknown (None), the student's must be unknown, too.
        std: Likewise.
        **options: See :class:`~fnkd_plugin.teachers.options.TeacherOptions`; ``channel_order`` is ``'rgb'`` by default.

    Raises:
        SetupError: If it cannot be imported or called, or does not return logits.
    """

    def __init__(
        self,
        fn: str | nn.Module | Callable[[Tensor], Tensor],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        name = f'CallableTeacher({fn if isinstance(fn, str) else getattr(fn, "__name__", type(fn).__name__)})'
        found = _imported(name, fn) if isinstance(fn, str) else fn
        if isinstance(found, type) or not callable(found):
            raise SetupError(f'{name}: fn must be a module or a function of images, but is {found!r}.')
        # A function has no weights; an empty module stands for them.
        model = sharing_weights(found) if isinstance(found, nn.Module) else nn.Module()
        forward = model if isinstance(found, nn.Module) else found
        super().__init__(model, forward, PixelFormat(channel_order='rgb'), name, mean=mean, std=std, **options)


def _imported(owner: str, dotted: str) -> Any:
    module, _, name = dotted.rpartition('.')
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SetupError(f'{owner}: it cannot be imported ({error}); give its name as package.module.name.') from error
