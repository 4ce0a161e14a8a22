"""A checkpoint that is loaded, resumed or tested must fit the model."""

from typing import Any

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch.nn.parallel import DistributedDataParallel

from fnkd_plugin.weights import find_state_dict, load_weights


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Refuses a checkpoint with other keys or shapes than the model's, which MMEngine only warns of.

    ``tools/train.py`` (``load_from``, ``--resume``), ``tools/test.py`` and :func:`fnkd_plugin.distill` add it. To start
    from a part of a checkpoint's weights, give ``init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone')``
    to that part of the model.
    """

    # Before EMAHook, which loads the weights itself.
    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Load the weights, before MMEngine does.

        Raises:
            SetupError: With the first keys that are missing, unknown or of another shape.
        """
        model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
        source = runner._load_from or 'the checkpoint'
        state = find_state_dict(checkpoint, source)
        load_weights(model, state, f'{type(model).__name__} and {source}')
        checkpoint['state_dict'] = state
