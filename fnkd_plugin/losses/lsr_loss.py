"""Label smoothing as a hard-label loss."""

from torch import Tensor

from fnkd_plugin.errors import check_number
from fnkd_plugin.functional import lsr_target
from fnkd_plugin.losses.denoised_label_loss import DenoisedLabelLoss


class LSRLoss(DenoisedLabelLoss):
    r"""Label-smoothing regularisation, :math:`H((1-\epsilon) q + \epsilon u, \sigma(z))` (Eq. 2).

    For use as ``head.loss``.

    Args:
        eps: :math:`0 \le \epsilon < 1`. Not stated in the paper; 0.1 is the common choice.
        loss_weight: Weight of the loss, >= 0.

    Raises:
        SetupError: If a number is out of range or non-finite.
    """

    def __init__(self, eps: float = 0.1, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.eps = check_number('LSRLoss', 'eps', eps, below=1)

    def target(self, label: Tensor, num_classes: int) -> Tensor:
        r""":math:`(1-\epsilon) q + \epsilon u`, [N, K]."""
        return lsr_target(label, num_classes, self.eps)
