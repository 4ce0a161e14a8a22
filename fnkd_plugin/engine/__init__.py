"""What a Runner needs: hooks, exact resumption, distributed training on CPUs."""

from fnkd_plugin.engine.evaluate_teacher_hook import EvaluateTeacherHook
from fnkd_plugin.engine.reproducible_hook import ReproducibleHook
from fnkd_plugin.engine.safe_checkpoint_hook import SafeCheckpointHook

__all__ = ['EvaluateTeacherHook', 'ReproducibleHook', 'SafeCheckpointHook']
