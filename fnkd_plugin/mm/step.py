"""Tensors of distillation steps for the log."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fnkd_plugin.prediction import Prediction, most_likely


class Step(NamedTuple):
    """Small tensors of one step, on the batch's device; copied to the host when something is logged.

    Attributes:
        student_class: The student's most likely classes [N].
        teacher_class: The teacher's most likely classes [N].
        logit_sum: Sum of the teacher's logits, a scalar; non-finite if a logit is.
        labels: Class indices [N], or None.
        student_norm: The student's feature norms [N], or None.
        teacher_norm: The teacher's feature norms [N], or None.
        hard_loss: The student's own unweighted loss, a scalar, or None.
    """

    student_class: Tensor
    teacher_class: Tensor
    logit_sum: Tensor
    labels: Tensor | None = None
    student_norm: Tensor | None = None
    teacher_norm: Tensor | None = None
    hard_loss: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def of(
        cls, student: Prediction, teacher: Prediction, labels: Tensor | None = None, hard_loss: Tensor | None = None
    ) -> 'Step':
        """The step of the predictions of a batch."""
        return cls(
            student.logits.argmax(1),
            most_likely(teacher),
            teacher.logits.sum(dtype=torch.float32),
            labels,
            None if student.feature_norm is None else student.feature_norm.detach(),
            teacher.feature_norm,
            None if hard_loss is None else hard_loss.detach(),
        )

    def clone(self) -> 'Step':
        """A copy with its own memory."""
        return type(self)(*[x if x is None else x.clone() for x in self])  # type: ignore[arg-type]


def first_broken(steps: Sequence[Step]) -> int | None:
    """The index of the first step with non-finite teacher logits, or None; synchronises with the device."""
    sums = torch.stack([step.logit_sum for step in steps]).tolist() if steps else []
    return next((i for i, total in enumerate(sums) if not math.isfinite(total)), None)


def means(steps: Sequence[Step]) -> dict[str, float]:
    """Means over the images of some steps; synchronises with the device.

    Returns:
        ``agreement``, the share of images with the same class predicted by both; ``teacher_acc``, the teacher's
        accuracy; ``teacher_norm`` and ``student_norm``, the feature norms; ``hard_ce``, the student's own unweighted
        loss (not "loss": MMEngine sums all values with that in their name).
    """
    columns = {
        'agreement': [step.student_class == step.teacher_class for step in steps],
        'teacher_acc': [step.teacher_class == step.labels for step in steps if step.labels is not None],
        'teacher_norm': [step.teacher_norm for step in steps if step.teacher_norm is not None],
        'student_norm': [step.student_norm for step in steps if step.student_norm is not None],
        'hard_ce': [step.hard_loss.view(1) for step in steps if step.hard_loss is not None],
    }
    return {name: torch.cat(values).float().mean().item() for name, values in columns.items() if values}
