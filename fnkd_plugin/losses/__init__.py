"""Registered losses over :mod:`fnkd_plugin.functional`."""

from fnkd_plugin._stack import require_openmmlab

require_openmmlab()

from fnkd_plugin.losses.fnkd_loss import FNKDLoss  # noqa: E402
from fnkd_plugin.losses.kd_loss import KDLoss  # noqa: E402
from fnkd_plugin.losses.lsr_loss import LSRLoss  # noqa: E402
from fnkd_plugin.losses.soft_loss import SoftTargetLoss  # noqa: E402

__all__ = ['FNKDLoss', 'KDLoss', 'LSRLoss', 'SoftTargetLoss']
