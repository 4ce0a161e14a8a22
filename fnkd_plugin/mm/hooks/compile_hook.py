"""Compiled training: ``forward(mode='loss')`` as one graph."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch._dynamo.exc import TorchDynamoException

from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.mm.tasks import unwrapped


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles ``forward(mode='loss')`` of the model while it trains: of a distilled one student, teacher and loss.

    Unlike MMEngine's ``compile``, which compiles ``train_step``, it leaves out what breaks a graph or keeps it from
    being captured: the copy to the device, ``backward()``, the optimiser, whose learning rate changes. On a GPU the
    graph is captured as a CUDA graph (``mode='reduce-overhead'``), so that small networks do not wait for their
    launches. Validation is not compiled. The first batch of a distilled model runs eagerly, as do the first 20 with
    ``tau='auto'``, which is calibrated on them. If compiling fails, a warning gives the reason, and training continues
    in eager mode.

    Args:
        **options: Arguments of ``torch.compile``, which replace ours.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options

    def before_train(self, runner: Any) -> None:
        """Compile; EMA has copied the model by now."""
        model = unwrapped(runner.model)
        on_gpu = next(model.parameters()).is_cuda
        options = dict(mode='reduce-overhead' if on_gpu else None, dynamic=False) | self._options
        eager = model.forward
        compiled: Any = torch.compile(eager, **options)
        settled = not isinstance(model, Distiller)

        def forward(*args: Any, mode: str = 'tensor', **kwargs: Any) -> Any:
            nonlocal compiled, settled
            if mode != 'loss' or compiled is None or not settled:
                outputs = eager(*args, mode=mode, **kwargs)
                # The teacher has moved to the device and has taken its memory order; its norms are read.
                settled = settled or (mode == 'loss' and model.distillation.head.calibrated)
                return outputs
            torch.compiler.cudagraph_mark_step_begin()
            try:
                return compiled(*args, mode=mode, **kwargs)
            except TorchDynamoException as error:
                compiled = None
                runner.logger.warning(
                    f'CompileHook: {type(model).__name__} cannot be compiled here and trains in eager mode '
                    f'({type(error).__name__}: {" ".join(str(error).split())[:300]}).'
                )
                return eager(*args, mode=mode, **kwargs)

        model.forward = forward

    def after_train(self, runner: Any) -> None:
        """Leave the model as it was."""
        unwrapped(runner.model).__dict__.pop('forward', None)
