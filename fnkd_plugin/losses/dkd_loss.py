"""Decoupled knowledge distillation."""

import torch
from torch import Tensor

from fnkd_plugin.errors import check_number, check_temperature
from fnkd_plugin.functional import scale_by_temperature, soft_cross_entropy
from fnkd_plugin.losses.soft_loss import SoftLoss
from fnkd_plugin.prediction import Prediction


class DKDLoss(SoftLoss):
    r"""Decoupled knowledge distillation, :math:`w \, T^2 (\alpha \, \text{TCKD} + \beta \, \text{NCKD})`.

    With :math:`t` the class of the image and :math:`p = \sigma(z/T)`, TCKD compares the pairs
    :math:`(p_t, 1 - p_t)` of teacher and student, NCKD their distributions over the other classes,
    :math:`p_k / (1 - p_t)`. KD is :math:`\alpha = 1` and, for each image, :math:`\beta = 1 - p_t` of the teacher: KD
    gives the other classes less weight where the teacher is confident; DKD does not. Source: Zhao et al.,
    *Decoupled Knowledge Distillation*, CVPR 2022, with the :math:`T^2` of the authors' code. Both terms are
    cross-entropies here, as in :class:`SoftTargetLoss`; the paper's divergences have the same gradient.

    The authors warm the loss up over 20 of 240 epochs: ``DistillHead(warmup=1 / 12)``. Under mixup and CutMix :math:`t`
    is the class of the larger share (our choice; the paper has one label per image).

    Args:
        alpha: :math:`\alpha \ge 0`.
        beta: :math:`\beta \ge 0`. For CIFAR-100 the authors use 8 for ResNet-32x4 to 8x4, 2 for ResNet-56 to 20.
        temperature: :math:`T > 0`.
        loss_weight: :math:`w \ge 0`.

    Raises:
        SetupError: If a number is out of range or non-finite.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        self.alpha = check_number('DKDLoss', 'alpha', alpha)
        self.beta = check_number('DKDLoss', 'beta', beta)
        self.temperature = check_temperature('DKDLoss', temperature)

    def forward(self, student: Prediction, teacher: Prediction, labels: Tensor | None = None) -> Tensor:
        """See :meth:`SoftLoss.forward`.

        Raises:
            ValueError: If there are no labels, the number of images is not a multiple of theirs, or there is one class.
        """
        if labels is None:
            raise ValueError('DKDLoss: the images have no labels; give the class of each, or use KDLoss.')
        count, classes = student.logits.shape
        if len(labels) == 0 or count % len(labels) or classes < 2:
            raise ValueError(
                'DKDLoss: needs at least two classes and one label per image, but got '
                f'{classes} classes, {count} images and {len(labels)} labels.'
            )
        if count > len(labels):  # with timm's AugMix, augmented copies follow the clean images
            labels = labels.repeat(count // len(labels))
        t = labels[:, None]
        k = torch.arange(classes - 1, device=labels.device)
        others = k + (k >= t)  # indices, since a boolean mask would synchronise with the GPU
        z_pair, z_others = _decoupled(scale_by_temperature(student.logits, self.temperature), t, others)
        v_pair, v_others = _decoupled(scale_by_temperature(teacher.logits, self.temperature), t, others)
        tckd, nckd = soft_cross_entropy(z_pair, v_pair), soft_cross_entropy(z_others, v_others)
        return self.loss_weight * self.temperature**2 * (self.alpha * tckd + self.beta * nckd)


def _decoupled(logits: Tensor, t: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, 2] whose softmax is (p_t, 1 - p_t), and those of the other classes, [N, K - 1]."""
    rest = logits.gather(1, others)
    return torch.cat([logits.gather(1, t), rest.logsumexp(dim=1, keepdim=True)], dim=1), rest
