"""timm models as MMPretrain classifiers."""

from fnkd_plugin._stack import require_openmmlab

require_openmmlab()

from fnkd_plugin.students.timm_student import TimmStudent  # noqa: E402

__all__ = ['TimmStudent']
