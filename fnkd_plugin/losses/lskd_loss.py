"""Knowledge distillation of standardised logits."""

from fnkd_plugin.errors import check_temperature
from fnkd_plugin.functional import logit_std
from fnkd_plugin.losses.scaled_logits import ScaledLogits
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.prediction import Prediction


class LSKDLoss(SoftTargetLoss):
    r"""Logit standardisation, :math:`w \, T^2 \, H(\sigma(Z(v)/T), \sigma(Z(z)/T))`.

    :math:`Z` is the z-score of an image's logits over the classes: the student need not reach the teacher's range of
    logits, only their relations. Source: Sun et al., *Logit Standardization in Knowledge Distillation*, CVPR 2024,
    algorithms 1 and 2. The standard deviation is the
    paper's, over :math:`K`; the authors' code divides by :math:`K - 1`, that is, has a :math:`T` larger by the factor
    :math:`\sqrt{K / (K - 1)}`.

    Args:
        temperature: The base temperature :math:`T > 0`.
        loss_weight: :math:`w \ge 0`; 9 beside a hard weight of 0.1 is the paper's for CIFAR-100.

    Raises:
        SetupError: If a number is out of range or not finite.
    """

    def __init__(self, temperature: float = 2.0, loss_weight: float = 9.0) -> None:
        super().__init__(loss_weight)
        self.temperature = check_temperature('LSKDLoss', temperature)

    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        """:math:`Z(z) / T`, less its mean, which no softmax sees."""
        return ScaledLogits(prediction.logits, 1 / (self.temperature * logit_std(prediction.logits)))

    def sample_weight(self, teacher: Prediction) -> float:
        """:math:`T^2`."""
        return self.temperature**2
