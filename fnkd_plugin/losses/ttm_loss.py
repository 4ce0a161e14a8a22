"""TTM: distillation with a temperature on the teacher's side only."""

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

    The target is the power transform :math:`p^\gamma / \sum_k p_k^\gamma` of the teacher's probabilities. Without a
    temperature on the student's side this is KD plus a term that maximises the entropy of the student's softened
    distribution. Source: Zheng and Yang, *Knowledge Distillation Based on Transformed Teacher
    Matching*, ICLR 2024.

    Args:
        gamma: :math:`\gamma > 0`, the inverse of the teacher's temperature; the authors use 0.3 for ResNet-56 to 20.
        loss_weight: :math:`w \ge 0`; the authors use 7 with a hard weight of 1 for ResNet-56 to 20.

    Raises:
        SetupError: If a number is out of range or non-finite.
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

    The weight of an image is :math:`U = \sum_k \sigma(v)_k^\gamma`, from 1 for a one-hot distribution of the teacher to
    :math:`K^{1-\gamma}` for a uniform one. Source: see :class:`TTMLoss`.

    Args:
        gamma: See :class:`TTMLoss`.
        loss_weight: :math:`w \ge 0`; the authors use 1.5 with a hard weight of 1 for ResNet-56 to 20.

    Raises:
        SetupError: If a number is out of range or non-finite.
    """

    needs_all_logits = True

    def __init__(self, gamma: float = 0.3, loss_weight: float = 1.5) -> None:
        super().__init__(gamma, loss_weight)

    def sample_weight(self, teacher: Prediction, scaled: ScaledLogits) -> Tensor:
        """:math:`U`, [N]."""
        return torch.exp(self.gamma * at_least_fp32(teacher.logits).log_softmax(dim=1)).sum(dim=1)


class FNTTMLoss(FNKDLoss):
    r"""TTM with the feature norm as temperature, :math:`w \, H(\sigma(\tau v / \lVert f_t \rVert), \sigma(z))`.

    Our combination of :class:`FNKDLoss` and :class:`TTMLoss`. With ``tau='auto'`` the mean temperature is 3, close to
    1 / 0.3 of TTM. The student's norm is not used.

    Args:
        tau: See :class:`FNKDLoss`.
        loss_weight: :math:`w \ge 0`.
        mode: See :class:`FNKDLoss`.

    Raises:
        SetupError: See :class:`FNKDLoss`.
    """

    def __init__(self, tau: float | str = 'auto', loss_weight: float = 7.0, mode: str = 'normalize') -> None:
        super().__init__(tau, loss_weight, mode)

    def student_logits(self, student: Prediction) -> ScaledLogits:
        """:math:`z`."""
        return ScaledLogits(student.logits)
