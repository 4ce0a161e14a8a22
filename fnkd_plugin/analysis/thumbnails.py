"""Thumbnails of the images in the report, from the model's input."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fnkd_plugin.analysis.subject import Subject
from fnkd_plugin.prediction import EnsemblePrediction, Prediction
from fnkd_plugin.teachers import PixelFormat

_LARGEST = 128


@dataclass(frozen=True)
class Shown:
    """One image: a PNG as a data URI, and the predictions [1, K] of model and teacher."""

    uri: str
    model: Prediction
    teacher: Prediction | None


def fetch(subject: Subject, indices: Iterable[int]) -> dict[int, Shown]:
    """Load images and predictions by index."""
    chosen = sorted(set(indices))
    found: dict[int, Shown] = {}
    if not chosen:
        return found
    remaining = iter(chosen)
    for batch in subject.batches(chosen):
        for row, image in enumerate(batch.inputs):
            teacher = None if batch.teacher is None else _row(batch.teacher, row)
            uri = png_uri(to_pixels(image, subject.pixels))
            found[next(remaining)] = Shown(uri, _row(batch.model, row), teacher)
    return found


def _row(prediction: Prediction, row: int) -> Prediction:
    if isinstance(prediction, EnsemblePrediction):
        return EnsemblePrediction.of([_row(one, row) for one in prediction.members], prediction.weights)
    logits, norm, origin = prediction
    return Prediction(logits[row : row + 1], None if norm is None else norm[row : row + 1], origin)


def to_pixels(image: Tensor, pixels: PixelFormat) -> NDArray[np.uint8]:
    """A normalised image [C, H, W] as RGB pixels [H, W, 3].

    Inverts the normalisation and converts BGR. If mean and std are unknown, the range of the image is stretched to 0 to
    255. Images without three channels become grey, the mean of their channels.
    """
    image = image.detach().float().cpu()
    if pixels.mean is not None and pixels.std is not None:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
        image = image * std + mean
    else:
        low, high = image.amin(), image.amax()
        image = (image - low) / (high - low).clamp_min(1e-12) * 255
    if len(image) != 3:
        image = image.mean(dim=0, keepdim=True).expand(3, -1, -1)
    elif pixels.channel_order == 'bgr':
        image = image.flip(0)
    return image.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode pixels [H, W, 3] as a data URI, reduced to at most 128 pixels a side."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    file = BytesIO()
    picture.save(file, 'png', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()
