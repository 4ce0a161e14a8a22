"""Image classifiers of Hugging Face's transformers as teachers."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpretrain.registry import MODELS

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_map import ClassMapping
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.execution import ExecutionOptions
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher


@MODELS.register_module()
class HuggingFaceTeacher(ModelTeacher):
    """An image classifier of ``transformers`` as a frozen teacher, under its image processor's format and size.

    Weights are read from ``.safetensors`` alone, and no code that comes with a model is run.

    Args:
        path: A local directory as of ``save_pretrained``, with the image processor's file; or a model's id on the hub.
        mean: Per channel on the 0 to 255 scale, where the processor's is wrong.
        std: As ``mean``.
        channel_order: ``'rgb'`` or ``'bgr'``, where the processor's is wrong.
        input_size: Resize images to this height and width if they differ; the processor's size if None.
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
        execution: ExecutionOptions = None,
        class_map: ClassMapping | None = None,
        classes: ClassNames | None = None,
    ) -> None:
        name = f'HuggingFaceTeacher({path})'
        model, processor = _load(name, str(path))
        pixels = _format_of(processor).restated(name, mean, std, channel_order)
        size = input_size or _size_of(name, processor)
        labels = list(model.config.id2label.values())
        invented = all(label == f'LABEL_{k}' for k, label in enumerate(labels))
        found = None if invented else Classes.of(labels, name)

        def forward(images: Any) -> Any:
            return model(pixel_values=images).logits

        super().__init__(model, forward, pixels, name, size, execution, class_map, classes, found)


def _load(name: str, path: str) -> tuple[Any, dict[str, Any]]:
    try:
        transformers = importlib.import_module('transformers')
    except ImportError as error:
        raise SetupError(f"{name}: it needs transformers; pip install 'fnkd_plugin[huggingface]'.") from error
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
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
    return model.float(), processor.to_dict()


def _format_of(processor: dict[str, Any]) -> PixelFormat:
    factor = processor['rescale_factor'] if processor.get('do_rescale') else 1.0
    normalised = processor.get('do_normalize')
    mean, std = (processor['image_mean'], processor['image_std']) if normalised else ([0.0] * 3, [1.0] * 3)
    order = 'bgr' if processor.get('do_flip_channel_order') else 'rgb'
    return PixelFormat.of([m / factor for m in mean], [s / factor for s in std], order)


def _size_of(name: str, processor: dict[str, Any]) -> int:
    size = (processor.get('do_center_crop') and processor.get('crop_size')) or processor.get('size') or {}
    sides = set(size.values())
    if len(sides) != 1:
        raise SetupError(f'{name}: its image processor makes no images of one square size ({size}); give input_size=N.')
    return sides.pop()
