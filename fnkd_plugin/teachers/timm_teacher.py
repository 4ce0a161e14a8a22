"""timm models as teachers."""

import logging
from pathlib import Path
from typing import Any

import timm

from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers.class_names import saved_classes, timm_classes
from fnkd_plugin.teachers.options import OPTIONS
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher
from fnkd_plugin.teachers.timm_models import (
    check_classifies,
    check_timm_model,
    checkpoint_classes,
    fixed_size,
    timm_errors,
)
from fnkd_plugin.weights import find_state_dict, load_weights, read_checkpoint

_logger = logging.getLogger(__name__)


class TimmTeacher(ModelTeacher):
    """A trained timm model, with RGB images in the format of its ``pretrained_cfg``.

    Args:
        model: timm's name of the model.
        checkpoint: Path or URL of its weights, as saved by timm, MMEngine or torch.
        pretrained: Whether to use timm's pretrained weights instead.
        num_classes: K; from the weights if None.
        **options: See :class:`~fnkd_plugin.teachers.options.TeacherOptions`; all others go to ``timm.create_model``,
            e.g. ``img_size`` for another fixed input size.

    Raises:
        SetupError: If timm has no such model (similar names are listed), it has no classifier, neither or both
            of ``checkpoint`` and ``pretrained`` are given, or the weights do not fit.
    """

    def __init__(
        self,
        model: str,
        checkpoint: str | Path | None = None,
        pretrained: bool = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        name = f'TimmTeacher({model})'
        stated = {key: options.pop(key) for key in OPTIONS if key in options}
        cfg = check_timm_model(name, model, options)
        if (checkpoint is None) == (not pretrained):
            both = ', not both' if pretrained else ''
            raise SetupError(f'{name}: a teacher needs trained weights; give checkpoint=FILE or pretrained=True{both}.')
        content = {} if checkpoint is None else read_checkpoint(checkpoint)
        state = None if checkpoint is None else find_state_dict(content, str(checkpoint))
        if state is not None and num_classes is None:
            num_classes = checkpoint_classes(state, cfg)
        if pretrained and num_classes not in (None, cfg.num_classes):
            raise SetupError(
                f'{name}: the pretrained weights have {cfg.num_classes} classes, not {num_classes}; its head '
                'would be random. Give checkpoint=FILE of a model trained on your classes.'
            )
        with timm_errors(name, pretrained):
            built = timm.create_model(model, pretrained=pretrained, num_classes=num_classes, **options)
        check_classifies(name, built)
        if state is not None:
            load_weights(built, state, f'{name} and {checkpoint}')
        classes = saved_classes(content) or timm_classes(cfg)
        assumed = state is not None and 'classes' not in stated and saved_classes(content) is None
        if assumed and classes is not None and len(classes.names) == built.num_classes:
            _logger.info(
                f'{name}: {checkpoint} has no class names; assuming the {built.num_classes} of ImageNet. If this is '
                'wrong, give classes=...'
            )
        own = timm.data.resolve_data_config({}, model=built)
        pixels = PixelFormat.of([255 * x for x in own['mean']], [255 * x for x in own['std']], 'rgb')
        size = fixed_size(built, options.get('img_size'))
        super().__init__(built, built, pixels, name, size, own['interpolation'], classes, **stated)
