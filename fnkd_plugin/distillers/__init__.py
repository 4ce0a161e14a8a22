"""The distilled model: :class:`Distiller`, :class:`DistillHead`, and how they read a classifier."""

from fnkd_plugin._stack import require_openmmlab

require_openmmlab()

from fnkd_plugin.distillers.distill_head import DistillHead  # noqa: E402
from fnkd_plugin.distillers.distiller import Distiller  # noqa: E402
from fnkd_plugin.prediction import Prediction  # noqa: E402

__all__ = ['DistillHead', 'Distiller', 'Prediction']
