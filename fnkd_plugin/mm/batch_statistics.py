"""What the log shows of a distilled batch."""

import torch
from torch import Tensor

from fnkd_plugin.prediction import Prediction, most_likely


@torch.no_grad()
def batch_statistics(student: Prediction, teacher: Prediction, labels: Tensor | None) -> dict[str, Tensor]:
    """Scalars on the batch's device; nothing waits for it.

    Args:
        student: The student's prediction.
        teacher: The teacher's.
        labels: See :func:`~fnkd_plugin.mm.labels.hard_labels`.

    Returns:
        ``agreement``, the share of images on which both predict one class; ``teacher_acc``, the teacher's
        accuracy on the batch; ``teacher_norm`` and ``student_norm``, the mean feature norms.
    """
    guess = most_likely(teacher)
    found = {'agreement': (student.logits.argmax(1) == guess).float().mean()}
    if labels is not None:
        found['teacher_acc'] = (guess == labels).float().mean()
    if teacher.feature_norm is not None:
        found['teacher_norm'] = teacher.feature_norm.mean()
    if student.feature_norm is not None:
        found['student_norm'] = student.feature_norm.mean()
    return found
