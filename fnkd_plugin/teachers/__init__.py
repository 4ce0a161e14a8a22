"""Frozen teachers: images in the student's format to a :class:`~fnkd_plugin.Prediction`."""

from fnkd_plugin._stack import require_openmmlab

require_openmmlab()

from fnkd_plugin.teachers.mmpretrain_teacher import MMPretrainTeacher  # noqa: E402
from fnkd_plugin.teachers.pixels import PixelFormat  # noqa: E402
from fnkd_plugin.teachers.teacher import Teacher  # noqa: E402
from fnkd_plugin.teachers.timm_teacher import TimmTeacher  # noqa: E402

__all__ = ['MMPretrainTeacher', 'PixelFormat', 'Teacher', 'TimmTeacher']
