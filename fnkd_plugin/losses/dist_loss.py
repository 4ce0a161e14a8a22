"""DIST: distillation by correlation."""

from torch import Tensor

from fnkd_plugin.errors import check_number, check_temperature
from fnkd_plugin.functional import pearson_correlation, scale_by_temperature
from fnkd_plugin.losses.soft_loss import SoftLoss
from fnkd_plugin.prediction import Prediction


class DISTLoss(SoftLoss):
    r"""DIST: maximises the correlation of the student's and the teacher's probabilities.

    .. math:: w \, T^2 \Big(\frac\beta N \sum_n \big(1 - \rho(p_{n\cdot}, q_{n\cdot})\big)
        + \frac\gamma K \sum_k \big(1 - \rho(p_{\cdot k}, q_{\cdot k})\big)\Big)

    with :math:`p = \sigma(z/T)`, :math:`q = \sigma(v/T)` [N, K] and Pearson's :math:`\rho`: the first term compares the
    classes of each image (inter-class), the second the images of a batch in each class (intra-class). The batch is
    the local one of a process and accumulation step; for one image the second term is constant.
    Source: Huang et al., *Knowledge Distillation from A Stronger Teacher*, NeurIPS 2022; :math:`T^2` is from the
    authors' code. Their code adds 1e-8 to the denominator of :math:`\rho`, which suppresses classes with small
    probabilities in a batch; here all classes count equally, as in the formula, and :math:`\rho` of a constant row or
    column is 0, or 1 if both are constant.

    Args:
        beta: :math:`\beta \ge 0`, the inter-class weight.
        gamma: :math:`\gamma \ge 0`, the intra-class weight.
        temperature: :math:`T > 0`; for CIFAR-100 the authors use 4, as far as we know.
        loss_weight: :math:`w \ge 0`.

    Raises:
        SetupError: If a number is out of range or non-finite.
    """

    needs_labels = False

    def __init__(
        self, beta: float = 2.0, gamma: float = 2.0, temperature: float = 1.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        self.beta = check_number('DISTLoss', 'beta', beta)
        self.gamma = check_number('DISTLoss', 'gamma', gamma)
        self.temperature = check_temperature('DISTLoss', temperature)

    def forward(self, student: Prediction, teacher: Prediction, labels: Tensor | None = None) -> Tensor:
        """See :meth:`SoftLoss.forward`; labels are ignored.

        Raises:
            ValueError: If the batch is empty.
        """
        if len(student.logits) == 0:
            raise ValueError('DISTLoss: the batch is empty; a correlation needs at least one image.')
        p, q = (scale_by_temperature(x.logits, self.temperature).softmax(dim=1) for x in (student, teacher))
        inter, intra = 1 - pearson_correlation(p, q).mean(), 1 - pearson_correlation(p.T, q.T).mean()
        return self.loss_weight * self.temperature**2 * (self.beta * inter + self.gamma * intra)
