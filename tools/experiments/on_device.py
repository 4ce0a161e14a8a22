"""Images in the device's memory for the Runner: a decoder and resizing on CPU cores cannot feed several small students.

An image is decoded once in a process. Boxes and flips are drawn by the config's own transforms, so they are those of a
training from files; cropping, resizing and flipping are one ``grid_sample`` of the batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch import Tensor

from fnkd_plugin.errors import SetupError

FIXED = ('LoadImageFromFile', 'Resize', 'ResizeEdge', 'CenterCrop')
RANDOM = ('RandomResizedCrop', 'RandomFlip')

_kept: dict[tuple[str, str], Tensor] = {}
"""Images [3, H, W] in uint8, by their transforms and paths: trainings of one process share them."""


class View(NamedTuple):
    """An image on the device [3, H, W], the box to be cut out, its size when resized, and whether it is flipped."""

    image: Tensor
    box: tuple[int, int, int, int]
    """Top, left, height, width."""
    size: tuple[int, int]
    flipped: bool
    mode: str


class FromDevice:
    """The transforms of a data set for images on the device.

    Args:
        transforms: Loading and fixed resizing, optionally ``RandomResizedCrop`` and ``RandomFlip``, and ``PackInputs``.
        device: The device of the images.

    Raises:
        SetupError: If there is any other transform or option. The message names it.
    """

    def __init__(self, transforms: Sequence[Any], device: torch.device) -> None:
        *steps, self._pack = transforms
        names = [type(step).__name__ for step in transforms]
        count = next((i for i, name in enumerate(names) if name not in FIXED), len(names))
        if names[count:] not in ([*RANDOM, 'PackInputs'], ['PackInputs']) or names[:1] != ['LoadImageFromFile']:
            raise SetupError(
                f'--device: the transforms {", ".join(names)} are not supported, but {", ".join(FIXED)}, then '
                f'{", ".join(RANDOM)} or neither, then PackInputs; leave out --device.'
            )
        self._fixed, self._random, self._device = steps[:count], steps[count:], device
        self._key = f'{self._fixed} {device}'
        if self._random:
            crop, flip = self._random
            if crop.interpolation not in ('bilinear', 'bicubic') or crop.backend != 'cv2':
                raise SetupError(f'--device: {crop} is not supported; leave out --device.')
            if flip.direction != 'horizontal':
                raise SetupError(f'--device: {flip} is not supported; leave out --device.')

    def __repr__(self) -> str:
        return f'{type(self).__name__}({[*self._fixed, *self._random]})'

    def __call__(self, results: dict) -> dict:
        """The view, as ``inputs``, and the data sample."""
        key = self._key, str(results['img_path'])
        if key not in _kept:
            image = Compose(self._fixed)(dict(results))['img']
            _kept[key] = torch.from_numpy(image.transpose(2, 0, 1).copy()).to(self._device)
        image = _kept[key]
        height, width = image.shape[1:]
        view = View(image, (0, 0, height, width), (height, width), False, '')
        if self._random:
            crop, flip = self._random
            box = crop.rand_crop_params(image[0])
            view = View(image, box, tuple(crop.scale), flip._choose_direction() is not None, crop.interpolation)
        return {**self._pack(results), 'inputs': view}


def collate(samples: Sequence[dict]) -> dict[str, Any]:
    """The batch of views as images [N, 3, H, W] with integer values in fp32, and its data samples."""
    views = [sample['inputs'] for sample in samples]
    sizes = sorted({tuple(view.image.shape[1:]) for view in views})
    if len(sizes) > 1:
        raise SetupError(f'--device: the images must have one size, but have {sizes[:3]}; leave out --device.')
    images = torch.stack([view.image for view in views]).float()
    if views[0].mode:
        height, width = sizes[0]
        rows = []
        for (top, left, h, w), flipped in ((view.box, view.flipped) for view in views):
            across = [(-w if flipped else w) / width, 0, (2 * left + w) / width - 1]
            rows.append([across, [0, h / height, (2 * top + h) / height - 1]])
        grid = F.affine_grid(
            torch.tensor(rows, device=images.device), [len(views), 3, *views[0].size], align_corners=False
        )
        images = F.grid_sample(images, grid, views[0].mode, 'border', align_corners=False).clamp_(0, 255).round_()
    return dict(inputs=images, data_samples=[sample['data_samples'] for sample in samples])


@HOOKS.register_module()
class ImagesOnDeviceHook(Hook):
    """Replaces the transforms and the workers of the Runner's data loaders by :class:`FromDevice`."""

    def before_run(self, runner: Any) -> None:
        """Before any hook that describes or draws images."""
        device = next(runner.model.parameters()).device
        loaders = [getattr(loop, 'dataloader', None) for loop in (runner._train_loop, runner._val_loop)]
        for loader in (loader for loader in loaders if loader is not None):
            dataset = loader.dataset
            dataset.pipeline = Compose([FromDevice(dataset.pipeline.transforms, device)])
            loader.collate_fn, loader.num_workers, loader.pin_memory = collate, 0, False
