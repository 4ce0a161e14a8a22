"""The distilled model: :class:`Distiller`, :class:`DistillHead`, and how they read a classifier."""

from fnkd_plugin.distillers.distill_head import DistillHead
from fnkd_plugin.distillers.distiller import Distiller
from fnkd_plugin.prediction import Prediction

__all__ = ['DistillHead', 'Distiller', 'Prediction']
