"""timm models as teachers."""

import logging
from pathlib import Path
from typing import Any

import timm

from fnkd_plugin.errors import SetupError
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_map import ClassMapping
from fnkd_plugin.teachers.class_names import saved_classes, timm_classes
from fnkd_plugin.teachers.execution import ExecutionOptions
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher
from fnkd_plugin.teachers.timm_models import check_classifies, check_timm_model, timm_errors
from fnkd_plugin.weights import find_state_dict, load_weights, read_checkpoint

_logger = logging.getLogger(__name__)


class TimmTeacher(ModelTeacher):
    """A trained timm model as a frozen teacher, with timm's own normalisation (``pretrained_cfg``) in RGB.

    Args:
        model: timm's name of it.
        checkpoint: Its weights: a path or URL of timm's, MMEngine's or torch's making.
        pretrained: Use timm's pretrained weights from the hub instead.
        num_classes: K; read from the checkpoint, or timm's own for pretrained weights, if None.
        mean: Per channel on the 0 to 255 scale, where the model was not trained with timm's.
        std: As ``mean``.
        input_size: Resize images to this height and width if they differ. By default only models of a fixed
            input size do, to theirs.
        interpolation: How it resizes them (``'bilinear'``, ``'bicubic'``, ...), where timm's is wrong.
        execution: How it is run, see :class:`~fnkd_plugin.teachers.execution.Execution`: ``'auto'``, or
            ``dict(dtype='bfloat16', channels_last=True, compile=True)`` or some of these.
        class_map: Which of its classes the student's are: for each of the student's its index or name here; a text
            file of such, one a line; or ``'by-name'``.
        classes: The names of its classes (a list, a text file, a data set of MMPretrain), where they are
            neither in the checkpoint nor ImageNet's, as those of timm's own weights are.
        **kwargs: Further arguments of ``timm.create_model``. ``img_size`` makes a fixed input size another.

    Raises:
        SetupError: If timm knows no such model (near names are listed), it has no classifier, neither weights are
            given, both are, or they do not fit.
    """

    def __init__(
        self,
        model: str,
        checkpoint: str | Path | None = None,
        pretrained: bool = False,
        num_classes: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        input_size: int | None = None,
        interpolation: str | None = None,
        execution: ExecutionOptions = None,
        class_map: ClassMapping | None = None,
        classes: ClassNames | None = None,
        **kwargs: Any,
    ) -> None:

        name = f'TimmTeacher({model})'
        cfg = check_timm_model(name, model, kwargs)
        if (checkpoint is None) == (not pretrained):
            raise SetupError(
                f'{name}: a teacher needs trained weights; give checkpoint=FILE or pretrained=True'
                f'{", not both" if pretrained else ""}.'
            )
        content = None if checkpoint is None else read_checkpoint(checkpoint)
        state = None if content is None else find_state_dict(content, str(checkpoint))
        if state is not None and num_classes is None:
            num_classes = _classes_of(state, cfg)
        if pretrained and num_classes not in (None, cfg.num_classes):
            raise SetupError(
                f'{name}: the pretrained weights have {cfg.num_classes} classes, not {num_classes}; its head '
                'would be random. Give checkpoint=FILE of a model trained on your classes.'
            )
        with timm_errors(name):
            built = timm.create_model(model, pretrained=pretrained, num_classes=num_classes, **kwargs)
        check_classifies(name, built)
        if state is not None:
            load_weights(built, state, f'{name} and {checkpoint}')
        data_cfg = timm.data.resolve_data_config({}, model=built)
        pixels = PixelFormat.of([255 * m for m in data_cfg['mean']], [255 * s for s in data_cfg['std']], 'rgb')
        if input_size is None and cfg.fixed_input_size:
            size = kwargs.get('img_size', data_cfg['input_size'][-1])
            input_size = size if isinstance(size, int) else None
        pixels = pixels.restated(name, mean, std)
        found = saved_classes(content or {})
        if found is None:
            found = timm_classes(cfg)
            if found is not None and checkpoint is not None and len(found.names) == built.num_classes:
                _logger.info(
                    f"{name}: {checkpoint} names no classes; its {built.num_classes} are taken for ImageNet's. If they "
                    'are others, say with classes=... which.'
                )
        super().__init__(
            built,
            built,
            pixels,
            name,
            input_size,
            execution,
            class_map,
            classes,
            found,
            interpolation or data_cfg['interpolation'],
        )


def _classes_of(state: dict, cfg: Any) -> int | None:
    classifier = cfg.classifier[0] if isinstance(cfg.classifier, (tuple, list)) else cfg.classifier
    weight = state.get(f'{classifier}.weight')
    return None if weight is None else len(weight)
