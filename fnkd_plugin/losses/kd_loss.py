"""Knowledge distillation with one temperature."""

from fnkd_plugin.errors import check_temperature
from fnkd_plugin.losses.scaled_logits import ScaledLogits
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.prediction import Prediction


class KDLoss(SoftTargetLoss):
    r"""Knowledge distillation, :math:`w \, T^2 \, H(\sigma(v/T), \sigma(z/T))` (Eq. 4 and 5).

    The paper's :math:`(1-\alpha) H(q, \sigma(z)) + \alpha H(q_{kd}, \sigma(z/T))` is
    ``DistillHead(hard_weight=1 - alpha, soft_loss=dict(type='KDLoss', loss_weight=alpha))``. Eq. 4 has no
    :math:`T^2`; the authors' code has it (``t_squared``), so that the size of the soft gradient does not depend on
    :math:`T`.

    Args:
        temperature: :math:`T > 0`.
        loss_weight: :math:`w \ge 0`.
        t_squared: Whether to multiply by :math:`T^2`.

    Raises:
        SetupError: If a number is out of range or non-finite.
    """

    needs_all_logits = False

    def __init__(self, temperature: float = 4.0, loss_weight: float = 1.0, t_squared: bool = True) -> None:
        super().__init__(loss_weight)
        self.temperature = check_temperature('KDLoss', temperature)
        self.t_squared = t_squared

    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        """:math:`z / T`."""
        return ScaledLogits(prediction.logits, 1 / self.temperature)

    def sample_weight(self, teacher: Prediction, scaled: ScaledLogits) -> float:
        """:math:`T^2`, or 1."""
        return self.temperature**2 if self.t_squared else 1.0
