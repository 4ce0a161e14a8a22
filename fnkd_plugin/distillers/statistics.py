"""What the log shows of a distilled batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fnkd_plugin.prediction import Prediction


@torch.no_grad()
def batch_statistics(student: Prediction, teacher: Prediction, data_samples: Sequence[Any] | None) -> dict[str, Tensor]:
    """Scalars on the batch's device; nothing waits for it.

    Returns:
        ``agreement``, the share of images on which both predict one class; ``teacher_acc``, the teacher's
        accuracy on the batch (against the heavier label under mixup); ``teacher_norm`` and ``student_norm``,
        the mean feature norms.
    """
    guess = teacher.logits.argmax(1)
    found = {'agreement': (student.logits.argmax(1) == guess).float().mean()}
    labels = _labels(data_samples)
    if labels is not None:
        found['teacher_acc'] = (guess == labels).float().mean()
    if teacher.feature_norm is not None:
        found['teacher_norm'] = teacher.feature_norm.mean()
    if student.feature_norm is not None:
        found['student_norm'] = student.feature_norm.mean()
    return found


def _labels(data_samples: Sequence[Any] | None) -> Tensor | None:
    if not data_samples:
        return None
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples]).argmax(1)
    if 'gt_label' in data_samples[0]:
        return torch.cat([sample.gt_label for sample in data_samples])
    return None
