"""The one soft-target cross-entropy under which every temperature policy stands."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fnkd_plugin.errors import check_number
from fnkd_plugin.functional import soft_cross_entropy
from fnkd_plugin.prediction import Prediction


class SoftTargetLoss(nn.Module, ABC):
    r""":math:`w \, H(\sigma(\pi(v)), \sigma(\pi(z)))`, the temperature policy :math:`\pi` left to subclasses.

    Args:
        loss_weight: :math:`w \ge 0`, finite. At 0 the teacher is not run.
    """

    needs_feature_norm = False
    """Whether the policy reads ``feature_norm`` and ``origin`` of both predictions."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = check_number(type(self).__name__, 'loss_weight', loss_weight)

    @abstractmethod
    def scaled_logits(self, prediction: Prediction) -> Tensor:
        """The prediction's logits under the temperature policy, [N, K]."""

    def observe(self, teacher: Prediction) -> None:
        """Called with the teacher's prediction of each training batch before :meth:`forward`."""

    def log_vars(self) -> dict[str, Tensor]:
        """Scalars of the policy for the log."""
        return {}

    def forward(self, student: Prediction, teacher: Prediction) -> Tensor:
        """The weighted loss, a scalar in fp32.

        Args:
            student: Logits [N, K] with gradient.
            teacher: Logits [N, K] of the same images and classes, without gradient.
        """
        loss = soft_cross_entropy(self.scaled_logits(student), self.scaled_logits(teacher))
        return self.loss_weight * loss
