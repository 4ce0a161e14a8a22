"""Checkpoints of tensors, numbers and strings only."""

from typing import Any

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from fnkd_plugin.checkpoints import to_plain


@HOOKS.register_module()
class SafeCheckpointHook(Hook):
    """Stores training logs and meta information as plain data.

    The checkpoints then load with ``torch.load(weights_only=True)`` and no exceptions: in timm, in upstream
    MMPretrain on torch >= 2.6, and here, where training logs come back on resuming. Put it into
    ``default_hooks``, whose entries merge.
    """

    # After EMAHook and others that add to the checkpoint.
    priority = 'LOWEST'

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Make everything but the weights plain."""
        for key in [k for k in checkpoint if not k.endswith('state_dict')]:
            checkpoint[key] = to_plain(checkpoint[key])
