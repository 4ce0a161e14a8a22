"""Any module or function as a teacher."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_map import ClassMapping
from fnkd_plugin.teachers.execution import ExecutionOptions
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher


class CallableTeacher(ModelTeacher):
    """Anything that makes logits of images: a trained ``nn.Module``, or a function.

    A module is frozen and its feature norm read where it has one last affine layer. A function gives logits alone, so
    KD applies and FNKD does not; the state and device of what it uses are its own matter.

    Args:
        fn: Images [N, C, H, W] to logits [N, K]; or, for configs, the dotted name by which to import it.
        mean: What its images are normalised by, per channel on the 0 to 255 scale. None, with ``std``, says that
            nothing is known, which fits a student of whose images as little is known.
        std: As ``mean``.
        channel_order: ``'rgb'`` or ``'bgr'``.
        input_size: Resize images to this height and width if they differ.
        interpolation: How they are resized, see :class:`~fnkd_plugin.teachers.resize.Resize`.
        execution: How it is run, see :class:`~fnkd_plugin.teachers.execution.Execution`: ``'auto'``, or
            ``dict(dtype='bfloat16', channels_last=True, compile=True)`` or some of these.
        class_map: Which of its classes the student's are: for each of the student's its index or name here; a text
            file of such, one a line; or ``'by-name'``.
        classes: The names of its classes (a list, a text file, a data set of MMPretrain).

    Raises:
        SetupError: If there is nothing of that name, it cannot be called, or it makes no logits.
    """

    def __init__(
        self,
        fn: str | nn.Module | Callable[[Tensor], Tensor],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_order: str = 'rgb',
        input_size: int | None = None,
        interpolation: str = 'bicubic',
        execution: ExecutionOptions = None,
        class_map: ClassMapping | None = None,
        classes: ClassNames | None = None,
    ) -> None:
        name = f'CallableTeacher({fn if isinstance(fn, str) else getattr(fn, "__name__", type(fn).__name__)})'
        found = _imported(name, fn) if isinstance(fn, str) else fn
        if isinstance(found, type) or not callable(found):
            raise SetupError(f'{name}: fn must be a module or a function of images, but is {found!r}.')
        model = found if isinstance(found, nn.Module) else _Function(found)
        pixels = PixelFormat().restated(name, mean, std, channel_order)
        super().__init__(
            model, model, pixels, name, input_size, execution, class_map, classes, interpolation=interpolation
        )


class _Function(nn.Module):
    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, images: Tensor) -> Tensor:
        return self.fn(images)


def _imported(owner: str, dotted: str) -> Any:
    module, _, name = dotted.rpartition('.')
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SetupError(f'{owner}: it cannot be imported ({error}); give its name as package.module.name.') from error
