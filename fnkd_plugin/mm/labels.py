"""The class of each image, out of a batch's data samples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def hard_labels(data_samples: Sequence[Any] | None) -> Tensor | None:
    """Class indices [N] on the batch's device, under mixup and CutMix the heavier class; None without labels."""
    if not data_samples:
        return None
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples]).argmax(1)
    if 'gt_label' in data_samples[0]:
        return torch.cat([sample.gt_label for sample in data_samples])
    return None
