"""Images, their augmented views and a teacher's predictions for all views, on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from mmpretrain.registry import DATASETS
from torch import Tensor

from experiments.side_by_side.recipe import PADDING, Recipe
from fnkd_plugin.prediction import Prediction

SHIFTS = 2 * PADDING + 1
VIEWS = SHIFTS * SHIFTS * 2
"""The number of views of an image: each position of the crop, flipped or not."""
CENTRE = (PADDING * SHIFTS + PADDING) * 2
"""The view that equals the image."""


class Images:
    """A data set as one array, and its views.

    Args:
        config: The config of the data set.
        recipe: Its ``mean`` and ``std`` normalise the pixels.
        device: The device of the images.
    """

    def __init__(self, config: dict, recipe: Recipe, device: torch.device) -> None:
        found = DATASETS.build({**config, 'serialize_data': False}).data_list
        images = torch.from_numpy(np.stack([sample['img'] for sample in found]))  # [M, H, W, 3]
        self.labels = torch.tensor([sample['gt_label'] for sample in found], device=device)
        count, height, width, _ = images.shape
        self.size = height, width
        padded = images.new_zeros(count, height + 2 * PADDING, width + 2 * PADDING, 3)
        padded[:, PADDING:-PADDING, PADDING:-PADDING] = images
        self._step = padded[0, ..., 0].numel()
        self._pixels = padded.view(-1, 3).to(device)
        places = torch.arange(self._step).view(padded.shape[1:3])
        views = [places[y : y + height, x : x + width] for y in range(SHIFTS) for x in range(SHIFTS)]
        self._places = torch.stack([v for view in views for v in (view, view.flip(1))]).flatten(1).to(device)
        # A table of all byte values, normalised in fp32 as the data preprocessor does.
        values = torch.arange(256.0)[:, None]
        table = (values - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
        self._offset = torch.arange(3, device=device) * 256
        self._values = table.T.flatten().to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, views: Tensor, dtype: torch.dtype) -> Tensor:
        """The normalised views [..., H, W, 3] of image indices [...] and view numbers [...]."""
        places = indices.flatten()[:, None] * self._step + self._places.index_select(0, views.flatten())
        pixels = self._pixels.index_select(0, places.flatten()).long() + self._offset
        return self._values.to(dtype).index_select(0, pixels.flatten()).view(*indices.shape, *self.size, 3)


class Plan:
    """The images and views in each batch of an epoch, the same for all students of a seed.

    Args:
        seeds: Each seed has its own order and views.
        count: The number of images.
        batch_size: The size of all batches except the last, which has the rest.
    """

    def __init__(self, seeds: Sequence[int], count: int, batch_size: int) -> None:
        self.seeds, self._count, self._size = list(seeds), count, batch_size
        self.steps = count // batch_size
        self.rest = count - self.steps * batch_size

    def __call__(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Images and views of full batches [2, steps, seeds, batch], and of the last batch [2, seeds, rest]."""
        drawn = [torch.stack(self._of_seed(seed, epoch)) for seed in self.seeds]
        both = torch.stack(drawn, 1)  # [2, seeds, M]
        whole = both[..., : self.steps * self._size]
        return (
            whole.unflatten(-1, (self.steps, self._size)).transpose(1, 2).contiguous(),
            both[..., self.steps * self._size :].contiguous(),
        )

    def _of_seed(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order = torch.randperm(self._count, generator=generator)
        return order, torch.randint(VIEWS, (self._count,), generator=generator)


class TeacherPredictions:
    """A teacher's predictions for all views of all images, in fp16: 1.6 GB for CIFAR's 8.1 million views.

    Attributes:
        mean_norm: The mean feature norm, which defines ``tau='auto'``.
    """

    def __init__(self, logits: Tensor, norms: Tensor, origin: Tensor) -> None:
        self._logits, self._norms, self._origin = logits, norms, origin
        self.mean_norm = float(norms.mean(dtype=torch.float64))

    def __call__(self, indices: Tensor, views: Tensor) -> Prediction:
        """For batches [seeds, N]: logits [seeds, N, K] and feature norms [seeds, N], both fp32, and the bias."""
        rows = (indices * VIEWS + views).flatten()
        logits, norms = (x.index_select(0, rows).float() for x in (self._logits, self._norms))
        return Prediction(logits.view(*indices.shape, -1), norms.view(indices.shape), self._origin)
