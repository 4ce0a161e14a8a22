"""Loss modules based on :mod:`fnkd_plugin.functional`."""

from fnkd_plugin.losses.alsr_loss import ALSRLoss
from fnkd_plugin.losses.denoised_label_loss import DenoisedLabelLoss
from fnkd_plugin.losses.dist_loss import DISTLoss
from fnkd_plugin.losses.dkd_loss import DKDLoss
from fnkd_plugin.losses.fnkd_loss import FNKDLoss
from fnkd_plugin.losses.kd_loss import KDLoss
from fnkd_plugin.losses.lskd_loss import LSKDLoss
from fnkd_plugin.losses.lsr_loss import LSRLoss
from fnkd_plugin.losses.normkd_loss import NormKDLoss
from fnkd_plugin.losses.soft_loss import SoftLoss, SoftTargetLoss
from fnkd_plugin.losses.ttm_loss import FNTTMLoss, TTMLoss, WTTMLoss

__all__ = [
    'ALSRLoss',
    'DISTLoss',
    'DKDLoss',
    'DenoisedLabelLoss',
    'FNKDLoss',
    'FNTTMLoss',
    'KDLoss',
    'LSKDLoss',
    'LSRLoss',
    'NormKDLoss',
    'SoftLoss',
    'SoftTargetLoss',
    'TTMLoss',
    'WTTMLoss',
]
