"""NormKD: the temperature is proportional to the standard deviation of each sample's logits."""

from torch import Tensor

from fnkd_plugin.errors import check_temperature
from fnkd_plugin.functional import inverse_logit_std
from fnkd_plugin.losses.scaled_logits import ScaledLogits
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.prediction import Prediction


class NormKDLoss(SoftTargetLoss):
    r"""NormKD, :math:`w \, T_v^2 \, H(\sigma(v/T_v), \sigma(z/T_z))`.

    Each image has the temperatures :math:`T_v = T \operatorname{std}(v)` and :math:`T_z = T \operatorname{std}(z)`. The
    distributions equal those of :class:`LSKDLoss` at the same :math:`T`; the weight of an image differs, here the
    square of the teacher's temperature. Source: Chi et al., *NormKD: Normalized Logits for Knowledge
    Distillation*, arXiv 2308.00520, after the authors' code, whose standard deviation divides by :math:`K - 1`;
    ours divides by :math:`K`, as in :class:`LSKDLoss`.

    Args:
        temperature: :math:`T > 0`, the authors' ``TEMPERATURE_NORM``.
        loss_weight: :math:`w \ge 0`; the authors use 0.9 with a hard weight of 0.1 for CIFAR-100.

    Raises:
        SetupError: If a number is out of range or non-finite.
    """

    def __init__(self, temperature: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.temperature = check_temperature('NormKDLoss', temperature)

    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        """:math:`z / T_z`."""
        return ScaledLogits(prediction.logits, inverse_logit_std(prediction.logits) / self.temperature)

    def sample_weight(self, teacher: Prediction, scaled: ScaledLogits) -> Tensor:
        """:math:`T_v^2`, [N]."""
        assert isinstance(scaled.scale, Tensor)
        return scaled.scale**-2
