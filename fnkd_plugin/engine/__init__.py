"""What a Runner needs: hooks, exact resumption, distributed training on CPUs."""

from fnkd_plugin._stack import require_openmmlab

require_openmmlab()

from fnkd_plugin.engine.evaluate_teacher_hook import EvaluateTeacherHook  # noqa: E402
from fnkd_plugin.engine.reproducible_hook import ReproducibleHook  # noqa: E402
from fnkd_plugin.engine.safe_checkpoint_hook import SafeCheckpointHook  # noqa: E402

__all__ = ['EvaluateTeacherHook', 'ReproducibleHook', 'SafeCheckpointHook']
