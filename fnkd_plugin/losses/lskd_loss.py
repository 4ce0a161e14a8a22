"""LSKD: knowledge distillation of standardised logits."""

from fnkd_plugin.errors import check_temperature
from fnkd_plugin.functional import inverse_logit_std
from fnkd_plugin.losses.scaled_logits import ScaledLogits
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.prediction import Prediction


class LSKDLoss(SoftTargetLoss):
    r"""Logit standardisation, :math:`w \, T^2 \, H(\sigma(Z(v)/T), \sigma(Z(z)/T))`.

    :math:`Z` is the z-score of an image's logits over the classes, so the loss does not depend on their range. Source:
    Sun et al., *Logit Standardization in Knowledge Distillation*, CVPR 2024, algorithms 1 and 2. As in the paper, the
    standard deviation divides by :math:`K`; the authors' code divides by :math:`K - 1`, which multiplies :math:`T` by
    :math:`\sqrt{K / (K - 1)}`.

    Args:
        temperature: The base temperature :math:`T > 0`.
        loss_weight: :math:`w \ge 0`; the paper uses 9 with a hard weight of 0.1 for CIFAR-100.

    Raises:
        SetupError: If a number is out of range or non-finite.
    """

    def __init__(self, temperature: float = 2.0, loss_weight: float = 9.0) -> None:
        super().__init__(loss_weight)
        self.temperature = check_temperature('LSKDLoss', temperature)

    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        """:math:`Z(z) / T` up to the mean, on which the softmax does not depend."""
        return ScaledLogits(prediction.logits, inverse_logit_std(prediction.logits) / self.temperature)

    def sample_weight(self, teacher: Prediction, scaled: ScaledLogits) -> float:
        """:math:`T^2`."""
        return self.temperature**2
