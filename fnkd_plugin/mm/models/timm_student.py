"""timm models as MMPretrain classifiers."""

from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import TimmClassifier
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.channels_last import check_trainable_on, unsafe_convolution
from fnkd_plugin.teachers.timm_models import check_classifies, check_timm_model, timm_errors
from fnkd_plugin.weights import load_weights, read_state_dict

_PREFIX = 'model.'


@MODELS.register_module()
class TimmStudent(TimmClassifier):
    """A timm model as a classifier whose checkpoints have timm's own keys.

    ``timm.create_model(checkpoint_path=...)`` and the stock ``TimmClassifier`` load its checkpoints. Unlike the stock
    one it also loads them inside another module (EMA, DDP).

    Args:
        model: timm's name of the model.
        num_classes: K; None for timm's own.
        checkpoint: Initial weights. A classifier with another number of classes is initialised randomly, as with
            ``pretrained``, and a message is logged.
        pretrained: Start from timm's pretrained weights from the hub.
        loss: Config of the hard-label loss.
        train_cfg: See MMPretrain's classifiers: ``augments`` for mixup and the like.
        channels_last: Keep weights and images in channels-last memory order, which makes convolutions, depthwise ones
            above all, several times faster on CPUs and on tensor cores. Models with an
            :func:`~fnkd_plugin.mm.channels_last.unsafe_convolution` cannot be trained in it on CPUs.
        with_cp: Save memory by gradient checkpointing.
        data_preprocessor: See MMPretrain's classifiers.
        init_cfg: See MMPretrain's classifiers.
        **kwargs: Further arguments of ``timm.create_model``.

    Raises:
        SetupError: If timm does not have the model (similar names are listed), it has no classifier, or the weights do
            not fit.
    """

    def __init__(
        self,
        model: str,
        num_classes: int | None = None,
        checkpoint: str | Path | None = None,
        pretrained: bool = False,
        loss: dict | nn.Module = dict(type='CrossEntropyLoss', loss_weight=1.0),  # noqa: B006
        train_cfg: dict | None = None,
        channels_last: bool = False,
        with_cp: bool = False,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        name = f'TimmStudent({model})'
        cfg = check_timm_model(name, model, kwargs)
        if checkpoint is not None and pretrained:
            raise SetupError(f'{name}: give checkpoint or pretrained, not both.')
        with timm_errors(name, pretrained):
            super().__init__(
                model,
                loss=loss,
                train_cfg=train_cfg,
                with_cp=with_cp,
                data_preprocessor=data_preprocessor,
                init_cfg=init_cfg,
                pretrained=pretrained,
                num_classes=num_classes,
                **kwargs,
            )
        check_classifies(name, self.model)
        self.img_size = kwargs.get('img_size')  # for probe(): not all of timm's models have the attribute
        if pretrained and num_classes not in (None, cfg.num_classes):
            print_log(
                f'{name}: the pretrained weights have {cfg.num_classes} classes, not {num_classes}; the classifier '
                'is initialised randomly.',
                logger='current',
            )
        # timm has initialised the model. MMEngine would call its init_weights again when training starts, and
        # overwrite pretrained weights.
        self.model.is_init = True
        self.channels_last = channels_last
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self._unsafe = unsafe_convolution(self.model) if channels_last else None
        if checkpoint is not None:
            self._start_from(checkpoint, name)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """See MMPretrain's classifiers."""
        if mode == 'loss':  # not in __init__, where the device of the training is not yet known
            check_trainable_on(inputs.device, 'TimmStudent', self._unsafe, 'train without channels_last=True')
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return super().forward(inputs, data_samples, mode)

    def _start_from(self, checkpoint: str | Path, name: str) -> None:
        state = read_state_dict(checkpoint)
        own = self.model.state_dict()
        classifiers = self.model.pretrained_cfg.get('classifier') or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        fresh = [
            key
            for key in own
            if key.rpartition('.')[0] in classifiers and key in state and state[key].shape != own[key].shape
        ]
        if fresh:
            print_log(
                f'{name}: {checkpoint} has another number of classes; {", ".join(fresh)} are initialised randomly.',
                logger='current',
            )
        load_weights(self.model, {**state, **{key: own[key] for key in fresh}}, f'{name} and {checkpoint}')

    @staticmethod
    def _remove_state_dict_prefix(
        module: nn.Module, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict
    ) -> None:
        # In place: PyTorch ignores the return value of a nested module's hook.
        for key in [k for k in state_dict if k.startswith(prefix)]:
            value = state_dict.pop(key)
            state_dict[prefix + key[len(prefix) :].removeprefix(_PREFIX)] = value

    @staticmethod
    def _add_state_dict_prefix(
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for key in [k for k in state_dict if k.startswith(prefix)]:
            state_dict[prefix + _PREFIX + key[len(prefix) :]] = state_dict.pop(key)
