"""Image classifiers of Hugging Face's transformers as teachers."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_map import ClassMapping
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.execution import ExecutionOptions
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher


class HuggingFaceTeacher(ModelTeacher):
    """An image classifier of ``transformers`` as a frozen teacher, under its image processor's format and size.

    Weights are read from ``.safetensors`` alone, and no code that comes with a model is run.

    Args:
        path: A local directory as of ``save_pretrained``, with the image processor's file; or a model's id on the hub.
        mean: Per channel on the 0 to 255 scale, where the processor's is wrong.
        std: As ``mean``.
        channel_order: ``'rgb'`` or ``'bgr'``, where the processor's is wrong.
        input_size: Resize images to this height and width if they differ; the processor's size if None.
        interpolation: How it resizes them (``'bilinear'``, ``'bicubic'``, ...), where the processor's is wrong.
        execution: How it is run, see :class:`~fnkd_plugin.teachers.execution.Execution`: ``'auto'``, or
            ``dict(dtype='bfloat16', channels_last=True, compile=True)`` or some of these.
        class_map: Which of its classes the student's are: for each of the student's its index or name here; a text
            file of such, one a line; or ``'by-name'``.
        classes: The names of its classes (a list, a text file, a data set of MMPretrain), where the model's are wrong.

    Raises:
        SetupError: If ``transformers`` is not installed, there is no such model or processor, weights are missing, or
            it is no single-label classifier of square images.
    """

    def __init__(
        self,
        path: str | Path,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_order: str | None = None,
        input_size: int | None = None,
        interpolation: str | None = None,
        execution: ExecutionOptions = None,
        class_map: ClassMapping | None = None,
        classes: ClassNames | None = None,
    ) -> None:
        name = f'HuggingFaceTeacher({path})'
        model, processor, made = _load(name, str(path))
        pixels = _format_of(made).restated(name, mean, std, channel_order)
        size = input_size or _size_of(name, made)
        interpolation = interpolation or _interpolation_of(processor)
        labels = [label for _, label in sorted(model.config.id2label.items())]  # a file may have them in any order
        invented = all(label == f'LABEL_{k}' for k, label in enumerate(labels))
        found = None if invented else Classes.of(labels, name)

        def forward(images: Any) -> Any:
            return model(pixel_values=images).logits

        super().__init__(model, forward, pixels, name, size, execution, class_map, classes, found, interpolation)


def _load(name: str, path: str) -> tuple[Any, Any, Tensor]:
    """The model, its image processor, and what that makes of a black, a white and a red image, [3, C, H, W]."""
    colours = np.array([(0, 0, 0), (255, 255, 255), (255, 0, 0)], np.uint8)
    try:
        transformers = importlib.import_module('transformers')
    except ImportError as error:
        raise SetupError(f"{name}: it needs transformers; pip install 'fnkd_plugin[huggingface]'.") from error
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        images = [Image.fromarray(np.tile(colour, (64, 64, 1))) for colour in colours]
        made = processor(images, return_tensors='pt')['pixel_values']
    except Exception as error:  # each version and each kind of fault has an error of its own
        reason = ' '.join(str(error).split()).rstrip('.') or type(error).__name__
        raise SetupError(
            f'{name}: transformers cannot load it ({reason}). Give a directory with config.json, '
            'preprocessor_config.json and model.safetensors, or the id of a model on the hub.'
        ) from error
    random = [*report['missing_keys'], *report['mismatched_keys']]
    if random:
        raise SetupError(f'{name}: its files lack {len(random)} weights ({first_few(random)}), which would be random.')
    if model.config.problem_type not in (None, 'single_label_classification'):
        raise SetupError(f'{name}: it is made for {model.config.problem_type}, not for one label an image.')
    return model.float(), processor, made


def _format_of(made: Tensor) -> PixelFormat:
    # By what the processor does, not by the mean and std that it states: EfficientNet's divides by std twice.
    black, white, red = made[..., made.shape[-2] // 2, made.shape[-1] // 2].double()
    std = 255 / (white - black)
    order = 'bgr' if (red - black).argmax() == 2 else 'rgb'
    mean, std = ([float(f'{x:.6g}') for x in values.tolist()] for values in (0 - black * std, std))
    return PixelFormat.of(mean, std, order)


def _interpolation_of(processor: Any) -> str:
    stated = getattr(processor, 'resample', None)
    # One that resizes nothing states none: bicubic (our choice).
    return 'bicubic' if stated is None else Resampling(stated).name.lower()


def _size_of(name: str, made: Tensor) -> int:
    height, width = made.shape[-2:]
    if height != width:
        raise SetupError(
            f'{name}: its image processor makes no images of one square size ({height} x {width}); give input_size=N.'
        )
    return height
