"""Anisotropic label smoothing as a hard-label loss."""

import logging
from typing import Any

from torch import Tensor, nn

from fnkd_plugin.errors import SetupError, check_number
from fnkd_plugin.functional import Neighbours
from fnkd_plugin.losses.denoised_label_loss import DenoisedLabelLoss
from fnkd_plugin.taxonomy import taxonomy_of

_logger = logging.getLogger(__name__)


class ALSRLoss(DenoisedLabelLoss):
    r"""Anisotropic label smoothing, :math:`H((1-\epsilon_1-\epsilon_2) q + \epsilon_1 u + \epsilon_2 \rho, \sigma(z))`.

    Eq. 3, for use as ``head.loss``: :math:`\rho` is uniform on A(x), the classes near the true one. A class without
    neighbours gets LSR with :math:`\epsilon_1` (our choice); the number of such classes is logged.

    Args:
        eps_uniform: :math:`\epsilon_1 \ge 0`. Not stated in the paper; 0.1 is our choice, as for LSR.
        eps_near: :math:`\epsilon_2 \ge 0`, :math:`\epsilon_1 + \epsilon_2 < 1`. Not stated either; 0.1 is our choice.
        groups: Groups of near classes: ``'cub'``, ``'cifar100'``, ``'cars_make'``, ``'cars_body'``, a file, a rule, or
            lists; see :func:`fnkd_plugin.taxonomy.taxonomy_of`.
        loss_weight: Weight of the loss, >= 0.

    Raises:
        SetupError: If a number is out of range or non-finite, the groups are invalid, or no class has a neighbour.
    """

    def __init__(
        self, eps_uniform: float = 0.1, eps_near: float = 0.1, *, groups: Any, loss_weight: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        self.eps_uniform = check_number('ALSRLoss', 'eps_uniform', eps_uniform, below=1)
        self.eps_near = check_number('ALSRLoss', 'eps_near', eps_near, below=1)
        if self.eps_uniform + self.eps_near >= 1:
            raise SetupError(
                f'ALSRLoss: eps_uniform + eps_near must be < 1, the rest being the true class, but is {eps_uniform} + '
                f'{eps_near}.'
            )
        self.taxonomy = taxonomy_of(groups)
        if not any(self.taxonomy.neighbours):
            raise SetupError('ALSRLoss: no class has a neighbour in these groups; give other groups, or use LSRLoss.')
        self.neighbours = Neighbours(self.taxonomy.neighbours)
        _logger.info(f'ALSRLoss: {self.taxonomy}; the others get LSR with eps {self.eps_uniform:g}.')

    def target(self, label: Tensor, num_classes: int) -> Tensor:
        r""":math:`(1-\epsilon_1-\epsilon_2) q + \epsilon_1 u + \epsilon_2 \rho`, [N, K]."""
        self.check_class_count(num_classes, 'the classifier')
        return self.neighbours.target(label, self.eps_uniform, self.eps_near)

    def check_class_count(self, num_classes: int, owner: str) -> None:
        """Check that a model has as many classes as the groups.

        Raises:
            SetupError: If not; with both numbers.
        """
        self.taxonomy.check_class_count(num_classes, f'ALSRLoss: {owner}')


def label_tables(model: nn.Module) -> list[tuple[nn.Module, ALSRLoss]]:
    """The :class:`ALSRLoss` modules in a model, each with its parent module."""
    return [(m, child) for m in model.modules() for child in m.children() if isinstance(child, ALSRLoss)]
