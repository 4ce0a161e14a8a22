"""Image classifiers of Hugging Face transformers as teachers."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.readers import ImageSize, only_size
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.hub import cached_if_unreachable
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher

_COLOURS = ((0, 0, 0), (255, 255, 255), (255, 0, 0), (128, 128, 128))
# Other attention names may load code from the hub.
_ATTENTION = (None, 'eager', 'sdpa', 'flex_attention')


class HuggingFaceTeacher(ModelTeacher):
    """An image classifier of ``transformers`` with its image processor's normalisation, size and interpolation.

    Weights are read only from ``.safetensors``, and code that comes with a model is not run.

    Args:
        path: A local directory of ``save_pretrained``, with the image processor's file; or a model id on the hub.
        **options: See :class:`~fnkd_plugin.teachers.options.TeacherOptions`.

    Raises:
        SetupError: If ``transformers`` is not installed, there is no such model or processor, weights are missing, it
            is not a single-label classifier, or the processor's size or normalisation depends on the image.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        name = f'HuggingFaceTeacher({path})'
        model, processor = _load(name, str(path))

        def forward(images: Tensor) -> Any:
            return model(pixel_values=images).logits

        stated = getattr(processor, 'resample', None)
        interpolation = 'bicubic' if stated is None else Resampling(stated).name.lower()  # bicubic: our choice
        pixels = PixelFormat(channel_order='rgb')
        if any(options.get(key) is None for key in ('mean', 'std', 'channel_order')):
            pixels = _format_of(name, processor)
        size = None if options.get('input_size') else _size_of(name, processor) or only_size(model, forward)
        labels = [label for _, label in sorted(model.config.id2label.items())]  # not sorted in every file
        placeholders = all(label == f'LABEL_{k}' for k, label in enumerate(labels))
        classes = None if placeholders else Classes.of(labels, name)
        super().__init__(model, forward, pixels, name, size, interpolation, classes, **options)


def _load(name: str, path: str) -> tuple[Any, Any]:
    """Load the model and its image processor; processes one image as a check."""
    with nullcontext() if Path(path).is_dir() else cached_if_unreachable():
        return _loaded(name, path)


def _loaded(name: str, path: str) -> tuple[Any, Any]:
    try:
        transformers = importlib.import_module('transformers')
    except ImportError as error:
        raise SetupError(f"{name}: it needs transformers; pip install 'fnkd_plugin[huggingface]'.") from error
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(path)
        foreign = [value for value in _attentions(config) if value not in _ATTENTION]
        if foreign:
            raise SetupError(f'{name}: its config sets the attention {foreign[0]!r}, which may load code from the hub.')
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        _processed(processor, (0, 0, 0), 64, 64)
    except SetupError:
        raise
    except Exception as error:  # the type of error depends on the fault and on the version
        reason = ' '.join(str(error).split()).rstrip('.') or type(error).__name__
        raise SetupError(
            f'{name}: transformers cannot load it ({reason}). Give a directory with config.json, '
            'preprocessor_config.json and model.safetensors, or the id of a model on the hub.'
        ) from error
    random = [*report['missing_keys'], *report['mismatched_keys']]
    if random:
        raise SetupError(f'{name}: its files lack {len(random)} weights ({first_few(random)}), which would be random.')
    if model.config.problem_type not in (None, 'single_label_classification'):
        raise SetupError(f'{name}: it is for {model.config.problem_type}, not single-label classification.')
    return model.float(), processor


def _attentions(config: Mapping[str, Any]) -> Iterator[Any]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from value.values() if 'attn_implementation' in key else _attentions(value)
        elif 'attn_implementation' in key:
            yield value


def _processed(processor: Any, colour: tuple[int, int, int], height: int, width: int) -> Tensor:
    """The processor's output for an image of one colour, [C, H, W]."""
    image = Image.fromarray(np.full((height, width, 3), colour, np.uint8))
    return processor(image, return_tensors='pt')['pixel_values'][0]


def _format_of(name: str, processor: Any) -> PixelFormat:
    # From the processor's output, not from its mean and std: that of EfficientNet divides by std twice.
    made = torch.stack([_processed(processor, colour, 64, 64) for colour in _COLOURS]).double()
    black, white, red, grey = made[..., made.shape[-2] // 2, made.shape[-1] // 2]
    if not torch.allclose(black + (white - black) * 128 / 255, grey, atol=1e-3) or not (white > black).all():
        raise SetupError(
            f'{name}: its image processor does not normalise by one mean and std per channel; give mean, std and '
            'channel_order.'
        )
    std = 255 / (white - black)
    order = 'bgr' if (red - black).argmax() == 2 else 'rgb'
    mean, std = ([float(f'{x:.6g}') for x in values.tolist()] for values in (0 - black * std, std))
    return PixelFormat.of(mean, std, order)


def _size_of(name: str, processor: Any) -> ImageSize | None:
    """The size (H, W) of the processor's outputs; None if it does not resize."""
    given = [(64, 64), (96, 96), (96, 64)]
    images = [_processed(processor, (0, 0, 0), *size) for size in given]
    made = [(image.shape[-2], image.shape[-1]) for image in images]
    if made == given:
        return None
    if len(set(made)) > 1:
        raise SetupError(
            f'{name}: the size of its image processor depends on the image: {given} become {made}; give input_size=N '
            'or (height, width).'
        )
    return made[0]
