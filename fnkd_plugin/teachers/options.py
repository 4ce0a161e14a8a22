"""The common options of teachers that are models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fnkd_plugin.errors import SetupError
from fnkd_plugin.readers import ImageSize
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_map import ClassMapping
from fnkd_plugin.teachers.execution import ExecutionOptions


@dataclass(frozen=True)
class TeacherOptions:
    """The options of every :class:`~fnkd_plugin.teachers.ModelTeacher`; None keeps what came with the weights.

    Args:
        mean: Mean of the normalisation, per channel on the 0 to 255 scale.
        std: Likewise.
        channel_order: ``'rgb'`` or ``'bgr'``.
        input_size: The size that images are resized to: one number for both sides, or (height, width).
        interpolation: The interpolation of resizing, see :class:`~fnkd_plugin.teachers.resize.Resize`.
        execution: ``'auto'``, or a dict of ``dtype``, ``channels_last`` and ``compile``, see
            :class:`~fnkd_plugin.teachers.execution.Execution`.
        class_map: The teacher's class for each student class: indices or names, a text file of them, or
            ``'by-name'``, see :class:`~fnkd_plugin.teachers.class_map.ClassMap`.
        classes: The names of the teacher's classes: a list, a text file, or a data set of MMPretrain.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channel_order: str | None = None
    input_size: ImageSize | None = None
    interpolation: str | None = None
    execution: ExecutionOptions = None
    class_map: ClassMapping | None = None
    classes: ClassNames | None = None

    @classmethod
    def of(cls, owner: str, options: Mapping[str, Any]) -> 'TeacherOptions':
        """Build from keyword arguments.

        Raises:
            SetupError: If an option is unknown.
        """
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise SetupError(f'{owner}: unknown option {", ".join(unknown)}; common options are {", ".join(OPTIONS)}.')
        return cls(**options)


OPTIONS = tuple(field.name for field in fields(TeacherOptions))
