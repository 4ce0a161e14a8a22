"""Registers the losses and teachers that do not depend on OpenMMLab with MMPretrain."""

from collections.abc import Sequence

from mmpretrain.registry import MODELS

from fnkd_plugin import losses
from fnkd_plugin.teachers import CallableTeacher, EnsembleTeacher, HuggingFaceTeacher, Teacher, TimmTeacher

for _kind in (
    losses.ALSRLoss,
    losses.DISTLoss,
    losses.DKDLoss,
    losses.FNKDLoss,
    losses.FNTTMLoss,
    losses.KDLoss,
    losses.LSKDLoss,
    losses.LSRLoss,
    losses.NormKDLoss,
    losses.TTMLoss,
    losses.WTTMLoss,
    CallableTeacher,
    HuggingFaceTeacher,
    TimmTeacher,
):
    MODELS.register_module(module=_kind)


@MODELS.register_module(name='EnsembleTeacher')
def build_ensemble(teachers: Sequence[dict | Teacher], weights: Sequence[float] | None = None) -> EnsembleTeacher:
    """An :class:`EnsembleTeacher` whose members may be configs."""
    return EnsembleTeacher([MODELS.build(t) if isinstance(t, dict) else t for t in teachers], weights)
