"""Distillation in which the teacher alone has a temperature."""

import torch
from torch import Tensor

from fnkd_plugin.errors import check_number
from fnkd_plugin.functional import at_least_fp32
from fnkd_plugin.losses.fnkd_loss import FNKDLoss
from fnkd_plugin.losses.scaled_logits import ScaledLogits
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.prediction import Prediction


class TTMLoss(SoftTargetLoss):
    r"""Transformed teacher matching, :math:`w \, H(\sigma(\gamma v), \sigma(z))`.

    As a function of the teacher's probabilities the target is :math:`p^\gamma / \sum_k p_k^\gamma`, their power
    transform. Without a temperature on the student's side this is KD plus a term that rewards the entropy of the
    student's softened distribution. Source: Zheng and Yang, *Knowledge Distillation Based on Transformed Teacher
    Matching*, ICLR 2024.

    Args:
        gamma: :math:`\gamma > 0`, the inverse of the teacher's temperature; 0.3 is the authors' for ResNet-56 to 20.
        loss_weight: :math:`w \ge 0`; 7 beside a hard weight of 1 is the authors' for ResNet-56 to 20.

    Raises:
        SetupError: If a number is out of range or not finite.
    """

    needs_all_logits = False

    def __init__(self, gamma: float = 0.3, loss_weight: float = 7.0) -> None:
        super().__init__(loss_weight)
        self.gamma = check_number(type(self).__name__, 'gamma', gamma, positive=True)

    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        r""":math:`\gamma v`."""
        return ScaledLogits(prediction.logits, self.gamma)

    def student_logits(self, student: Prediction) -> ScaledLogits:
        """:math:`z`."""
        return ScaledLogits(student.logits)


class WTTMLoss(TTMLoss):
    r"""Weighted transformed teacher matching, :math:`\frac wN \sum_n U_n H(\sigma(\gamma v_n), \sigma(z_n))`.

    An image weighs :math:`U = \sum_k \sigma(v)_k^\gamma`, between 1 for a teacher that is sure and
    :math:`K^{1-\gamma}` for one that knows nothing: the smoother its distribution, the more there is to learn. Source:
    as :class:`TTMLoss`.

    Args:
        gamma: See :class:`TTMLoss`.
        loss_weight: :math:`w \ge 0`; 1.5 beside a hard weight of 1 is the authors' for ResNet-56 to 20.

    Raises:
        SetupError: If a number is out of range or not finite.
    """

    needs_all_logits = True

    def __init__(self, gamma: float = 0.3, loss_weight: float = 1.5) -> None:
        super().__init__(gamma, loss_weight)

    def sample_weight(self, teacher: Prediction) -> Tensor:
        """:math:`U`, [N]."""
        return torch.exp(self.gamma * at_least_fp32(teacher.logits).log_softmax(dim=1)).sum(dim=1)


class FNTTMLoss(FNKDLoss):
    r"""TTM by the norm, :math:`w \, H(\sigma(\tau v / \lVert f_t \rVert), \sigma(z))`.

    The teacher's temperature is its feature norm. Our combination of :class:`FNKDLoss`, whose arguments it has, and
    :class:`TTMLoss`: with ``tau='auto'`` the mean of the temperatures is 3, near TTM's 1 / 0.3. The student's norm is
    not used.
    """

    def __init__(self, tau: float | str = 'auto', loss_weight: float = 7.0, mode: str = 'clip') -> None:
        super().__init__(tau, loss_weight, mode)

    def student_logits(self, student: Prediction) -> ScaledLogits:
        """:math:`z`."""
        return ScaledLogits(student.logits)
