"""Label smoothing as a hard-label loss."""

import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from fnkd_plugin.errors import check_number
from fnkd_plugin.functional import at_least_fp32, lsr_target


@MODELS.register_module()
class LSRLoss(nn.Module):
    r"""Label-smoothing regularisation, :math:`H((1-\epsilon) q + \epsilon u, \sigma(z))` (Eq. 2), as ``head.loss``.

    Args:
        eps: :math:`0 \le \epsilon < 1`. The paper does not print its value; 0.1 is the field's custom.
        loss_weight: A factor >= 0.

    Raises:
        SetupError: If a number is out of range or not finite.
    """

    def __init__(self, eps: float = 0.1, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.eps = check_number('LSRLoss', 'eps', eps, below=1)
        self.loss_weight = check_number('LSRLoss', 'loss_weight', loss_weight)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            cls_score: Logits [N, K].
            label: Class indices [N], or distributions [N, K] (mixup, CutMix).
            weight: A weight for each sample, [N].
            avg_factor: What the sum over samples is divided by; N by default.
        """
        logits = at_least_fp32(cls_score)
        target = lsr_target(label, cls_score.shape[1], self.eps)
        loss = F.cross_entropy(logits, target.to(logits), reduction='none')
        if weight is not None:
            loss = loss * weight
        return self.loss_weight * loss.sum() / (len(loss) if avg_factor is None else avg_factor)
