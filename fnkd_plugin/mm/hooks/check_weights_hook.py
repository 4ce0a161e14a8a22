"""Strict loading of checkpoints."""

from typing import Any

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch.nn.parallel import DistributedDataParallel

from fnkd_plugin.weights import find_state_dict, load_weights


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Refuses checkpoints whose keys or shapes differ from the model's, for which MMEngine only warns.

    ``tools/train.py`` (``load_from``, ``--resume``), ``tools/test.py`` and :func:`fnkd_plugin.distill` add it. To load
    part of a checkpoint, set ``init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone')`` in that part of
    the model.
    """

    # Before EMAHook, which loads the weights itself.
    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Load the weights before MMEngine does.

        Raises:
            SetupError: If keys are missing, unknown or of another shape; it lists the first.
        """
        model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
        source = runner._load_from or 'the checkpoint'
        state = find_state_dict(checkpoint, source)
        load_weights(model, state, f'{type(model).__name__} and {source}')
        checkpoint['state_dict'] = state
