"""Labels of a batch and class names of a data set."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def class_names(dataset: Any) -> list[str]:
    """The class names in a data set's ``metainfo``; empty if it has none."""
    return list((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())


def are_labelled(data_samples: Sequence[Any] | None) -> bool:
    """Whether a batch has labels, one per image.

    Raises:
        ValueError: If an image has several labels.
    """
    if not data_samples or not ('gt_label' in data_samples[0] or 'gt_score' in data_samples[0]):
        return False
    for sample in data_samples:
        if 'gt_label' in sample and sample.gt_label.numel() != 1:
            raise ValueError(
                f'Distiller: an image has {sample.gt_label.numel()} labels; soft targets are distributions over the '
                'classes of a single-label classifier.'
            )
    return True


def hard_labels(data_samples: Sequence[Any] | None) -> Tensor | None:
    """Class indices [N] on the batch's device (under mixup and CutMix the heavier class), or None without labels.

    Raises:
        ValueError: If an image has several labels.
    """
    if not are_labelled(data_samples):
        return None
    assert data_samples is not None
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples]).argmax(1)
    return torch.cat([sample.gt_label for sample in data_samples])
