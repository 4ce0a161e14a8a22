"""timm models as MMPretrain classifiers."""

from fnkd_plugin.students.timm_student import TimmStudent

__all__ = ['TimmStudent']
