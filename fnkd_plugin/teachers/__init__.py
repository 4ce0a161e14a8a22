"""Frozen teachers: from images in the student's format to a :class:`~fnkd_plugin.Prediction`."""

from fnkd_plugin.teachers.callable_teacher import CallableTeacher
from fnkd_plugin.teachers.class_map import ClassMap
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.ensemble_teacher import EnsembleTeacher
from fnkd_plugin.teachers.huggingface_teacher import HuggingFaceTeacher
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher, Teacher
from fnkd_plugin.teachers.timm_teacher import TimmTeacher

__all__ = [
    'CallableTeacher',
    'ClassMap',
    'Classes',
    'EnsembleTeacher',
    'HuggingFaceTeacher',
    'ModelTeacher',
    'PixelFormat',
    'Teacher',
    'TimmTeacher',
]
