"""Checkpoints of tensors, numbers and strings only."""

from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmpretrain.registry import HOOKS

from fnkd_plugin.mm.checkpoints import to_plain


@HOOKS.register_module()
class SafeCheckpointHook(Hook):
    """Stores training logs and meta information as plain data, and never removes the last checkpoint.

    The checkpoints then load with ``torch.load(weights_only=True)`` and no exceptions: in timm, in upstream
    MMPretrain on torch >= 2.6, and here, where training logs come back on resuming. Put it into
    ``default_hooks``, whose entries merge.

    Where ``CheckpointHook`` is to keep one checkpoint only, it keeps two: MMEngine removes the older before it
    writes the newer, and a run killed meanwhile could not be resumed.
    """

    # After EMAHook and others that add to the checkpoint.
    priority = 'LOWEST'

    def before_run(self, runner: Any) -> None:
        """See the class: keep two checkpoints where one is asked for."""
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.max_keep_ckpts == 1:
                hook.max_keep_ckpts = 2

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Make everything but the weights plain."""
        for key in [k for k in checkpoint if not k.endswith('state_dict')]:
            checkpoint[key] = to_plain(checkpoint[key])
