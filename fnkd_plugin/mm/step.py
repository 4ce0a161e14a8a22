"""What the log shows of a distillation step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnkd_plugin.mm.labels import hard_labels
from fnkd_plugin.prediction import Prediction, most_likely


class Step(NamedTuple):
    """The tensors of one training step, by reference: statistics are computed only if the step is logged.

    Attributes:
        student: The student's prediction.
        teacher: The teacher's prediction.
        data_samples: The data samples of the batch, for its labels.
        losses: The student's own unweighted losses.
    """

    student: Prediction
    teacher: Prediction
    data_samples: Sequence[Any] | None
    losses: dict[str, Any]

    @classmethod
    def of(
        cls, student: Prediction, teacher: Prediction, data_samples: Sequence[Any] | None, losses: dict[str, Any]
    ) -> 'Step':
        """The step of a batch."""
        if torch.compiler.is_compiling():  # attached, they would be outputs of the graph that need a gradient
            norm = student.feature_norm
            student = Prediction(student.logits.detach(), None if norm is None else norm.detach())
        return cls(student, teacher, data_samples, losses)

    def teacher_is_finite(self) -> bool:
        """Whether all logits of the teacher are finite; synchronises with the device."""
        return bool(self.teacher.logits.isfinite().all())

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """Means over the batch; synchronises with the device.

        Returns:
            ``agreement``, the share of images with the same class predicted by both; ``teacher_acc``, the teacher's
            accuracy; ``teacher_norm`` and ``student_norm``, the feature norms; ``hard_ce``, the student's own
            unweighted loss (not "loss": MMEngine sums all values with that in their name).
        """
        guess, labels = most_likely(self.teacher), hard_labels(self.data_samples)
        found = {
            'agreement': self.student.logits.argmax(1) == guess,
            'teacher_acc': None if labels is None else guess == labels,
            'teacher_norm': self.teacher.feature_norm,
            'student_norm': self.student.feature_norm,
            'hard_ce': _total(self.losses),
        }
        return {name: value.float().mean().item() for name, value in found.items() if value is not None}


def _total(losses: dict[str, Any]) -> Tensor | None:
    parts = [value if isinstance(value, Tensor) else sum(value) for name, value in losses.items() if 'loss' in name]
    return torch.stack([part.mean() for part in parts]).sum() if parts else None
