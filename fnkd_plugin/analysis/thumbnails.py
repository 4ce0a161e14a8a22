"""Thumbnails of the images in the report, from the model's input."""

import base64
from collections.abc import Iterable
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fnkd_plugin.analysis.subject import Subject
from fnkd_plugin.teachers import PixelFormat


def thumbnails(subject: Subject, indices: Iterable[int]) -> dict[int, str]:
    """PNGs of images by index, as data URIs."""
    found = {}
    for batch in subject.batches(sorted(set(indices))):
        for index, image in zip(batch.indices, batch.images, strict=True):
            found[index] = png_uri(to_pixels(image, subject.pixels))
    return found


def to_pixels(image: Tensor, pixels: PixelFormat) -> NDArray[np.uint8]:
    """A normalised image [C, H, W] as RGB pixels [H, W, 3].

    Inverts the normalisation and converts BGR. If mean and std are unknown, the range of the image is stretched to 0 to
    255. Images without three channels become grey, the mean of their channels.
    """
    image = image.float().cpu()
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


def png_uri(pixels: NDArray[np.uint8], largest: int = 128) -> str:
    """Encode pixels [H, W, 3] as a data URI, reduced to a side length of at most ``largest`` pixels."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((largest, largest))
    file = BytesIO()
    picture.save(file, 'png', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()
