"""Soft losses, and the soft-target cross-entropy with a temperature policy."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fnkd_plugin.errors import check_number
from fnkd_plugin.losses.scaled_cross_entropy import scaled_cross_entropy
from fnkd_plugin.losses.scaled_logits import ScaledLogits, Target
from fnkd_plugin.losses.top_k import log_target, sparse_cross_entropy
from fnkd_plugin.prediction import Prediction, SparsePrediction, members_of


class SoftLoss(nn.Module, ABC):
    r"""A loss between a student's and a teacher's predictions of the same images.

    Args:
        loss_weight: :math:`w \ge 0`, finite. At 0 the teacher is not run.
    """

    needs_feature_norm = False
    """Whether the loss reads ``feature_norm`` and ``origin`` of both predictions."""

    needs_all_logits = True
    """Whether the loss refuses the top-k logits of a :class:`~fnkd_plugin.prediction.SparsePrediction`."""

    needs_labels = True
    """Whether the loss reads the labels."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = check_number(type(self).__name__, 'loss_weight', loss_weight)

    def observe(self, teacher: Prediction) -> None:
        """Called with the teacher's prediction of each training batch before :meth:`forward`."""

    @property
    def calibrated(self) -> bool:
        """Whether :meth:`observe` no longer synchronises with the device."""
        return True

    def log_vars(self) -> dict[str, float]:
        """Numbers for the log."""
        return {}

    @abstractmethod
    def forward(self, student: Prediction, teacher: Prediction, labels: Tensor | None = None) -> Tensor:
        """The weighted loss, a scalar in fp32.

        Args:
            student: Logits [N, K] with gradient.
            teacher: Logits [N, K] of the same images and classes, without gradient.
            labels: Class indices [N]; under mixup and CutMix the heavier class of each image.
        """


class SoftTargetLoss(SoftLoss):
    r"""Cross-entropy with a teacher's distributions, the temperature policy :math:`\pi` left to subclasses.

    .. math:: w \, \frac1N \sum_n w_n H\big(\sigma(\pi(v_n)), \sigma(\pi(z_n))\big)

    A policy may treat the student's side differently (:meth:`student_logits`).

    Where a paper has the Kullback-Leibler divergence, it differs by the teacher's entropy: the gradient is the same.

    Args:
        loss_weight: :math:`w \ge 0`, finite. At 0 the teacher is not run.
    """

    needs_labels = False

    @abstractmethod
    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        """The prediction's logits and how the temperature policy scales them."""

    def student_logits(self, student: Prediction) -> ScaledLogits:
        """The student's side, where the policy is not the same on both; :meth:`scaled_logits` by default."""
        return self.scaled_logits(student)

    def sample_weight(self, teacher: Prediction, scaled: ScaledLogits) -> Tensor | float:
        """:math:`w_n`, [N] or one for all: what keeps the gradient's size under the policy; 1 by default.

        Args:
            teacher: The teacher's prediction.
            scaled: Its :meth:`scaled_logits`.
        """
        return 1.0

    def forward(
        self,
        student: Prediction,
        teacher: Prediction,
        labels: Tensor | None = None,
        image_weight: Tensor | float = 1.0,
    ) -> Tensor:
        """See :meth:`SoftLoss.forward`; labels are not read.

        Of several teachers the target is the mean distribution, each after the policy: since cross-entropy is linear in
        it, the mean of the losses. ``image_weight``, [N] or one for all, is a further factor of each image's loss.
        """
        if isinstance(teacher, SparsePrediction):
            _, weight = self._target(teacher, image_weight)
            log_q = log_target(teacher, lambda prediction: self.scaled_logits(prediction).tensor())
            return sparse_cross_entropy(self.student_logits(student).tensor(), log_q, teacher.classes, weight)
        targets = [self._target(one, share * image_weight) for share, one in members_of(teacher)]
        return scaled_cross_entropy(self.student_logits(student), targets)

    def _target(self, teacher: Prediction, weight: Tensor | float) -> Target:
        scaled = self.scaled_logits(teacher)
        return scaled, self.sample_weight(teacher, scaled) * (self.loss_weight * weight)
