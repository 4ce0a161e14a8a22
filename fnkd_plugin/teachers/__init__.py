"""Frozen teachers: images in the student's format to a :class:`~fnkd_plugin.Prediction`."""

from fnkd_plugin.teachers.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import Teacher
from fnkd_plugin.teachers.timm_teacher import TimmTeacher

__all__ = ['MMPretrainTeacher', 'PixelFormat', 'Teacher', 'TimmTeacher']
