"""Base class of the losses that replace a hard label by a fixed distribution."""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from fnkd_plugin.errors import check_number
from fnkd_plugin.functional import at_least_fp32


class DenoisedLabelLoss(nn.Module, ABC):
    r"""Cross-entropy :math:`w \, H(\hat q, \sigma(z))`; subclasses define the denoised label :math:`\hat q` (Eq. 1).

    Args:
        loss_weight: :math:`w \ge 0`, finite.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = check_number(type(self).__name__, 'loss_weight', loss_weight)

    @abstractmethod
    def target(self, label: Tensor, num_classes: int) -> Tensor:
        """The denoised labels [N, K] of ``label``, class indices [N] or distributions [N, K]."""

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
            avg_factor: Divisor of the sum over samples; N by default.
        """
        logits = at_least_fp32(cls_score)
        target = self.target(label, cls_score.shape[1])
        loss = F.cross_entropy(logits, target.to(logits), reduction='none')
        if weight is not None:
            loss = loss * weight
        return self.loss_weight * loss.sum() / (len(loss) if avg_factor is None else avg_factor)
