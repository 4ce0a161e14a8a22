"""Feature normalised knowledge distillation."""

import logging
from typing import Any

import torch
from torch import Tensor

from fnkd_plugin.errors import SetupError, check_number
from fnkd_plugin.functional import norm_scale
from fnkd_plugin.losses.auto_tau import AutoTau
from fnkd_plugin.losses.scaled_logits import FeatureNormScale, ScaledLogits
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.prediction import Prediction

MAX_GRADIENT_RATIO = 4.0
_logger = logging.getLogger(__name__)


class FNKDLoss(SoftTargetLoss):
    r"""Feature normalised knowledge distillation: the temperature is each sample's feature norm (Eq. 10 to 12).

    .. math:: \lambda^2 H\big(\sigma(\tau v / \lVert f_t \rVert), \sigma(\tau z / \lVert f_s \rVert)\big)

    where the bias is not scaled (see :func:`fnkd_plugin.functional.scale_by_feature_norm`). Gradient flows through the
    student's norm, as in the authors' code. With ``detach_norm=True`` it does not, as in Eq. 12; training can then
    collapse, since nothing bounds :math:`\lVert f_s \rVert` (a warning is logged).

    Args:
        tau: The target feature norm, > 0; or ``'auto'``, a third of the teacher's mean feature norm
            (our choice, from the paper's rule :math:`\lambda^2\tau^2/\text{mean}\lVert f\rVert^2 \approx 1` at
            :math:`\lambda = 3`), see :class:`AutoTau`.
        loss_weight: :math:`\lambda^2 \ge 0`.
        mode: ``'normalize'`` (Eq. 10) or ``'clip'`` (the authors' code), which does not rescale norms below tau: a
            student of such norms is compared at T = 1 with the teacher's softened distribution, in conflict with the
            hard loss. Where all norms are above tau, both are the same.
        detach_norm: Whether to detach the student's norm, as in Eq. 12.

    Raises:
        SetupError: If a number is out of range or non-finite, or ``mode`` is unknown.
    """

    needs_feature_norm = True
    needs_all_logits = False

    def __init__(
        self,
        tau: float | str = 'auto',
        loss_weight: float = 9.0,
        mode: str = 'normalize',
        detach_norm: bool = False,
    ) -> None:
        super().__init__(loss_weight)
        if mode not in ('normalize', 'clip'):
            raise SetupError(f"FNKDLoss: mode must be 'normalize' or 'clip', but is {mode!r}.")
        if isinstance(tau, str) and tau != 'auto':
            raise SetupError(f"FNKDLoss: tau must be a number > 0 or 'auto', but is {tau!r}.")
        self._auto = AutoTau() if tau == 'auto' else None
        self._tau = 0.0 if self._auto else check_number('FNKDLoss', 'tau', tau, positive=True)
        self.mode = mode
        self.detach_norm = detach_norm
        self._balance_checked = False
        if mode == 'normalize' and detach_norm:
            _logger.warning(
                "FNKDLoss: mode='normalize' with detach_norm=True is exactly Eq. 12; the student's feature norm is "
                'then unbounded, and training can collapse. Watch student_norm in the log.'
            )

    @property
    def tau(self) -> float:
        """The target feature norm; with ``'auto'`` the current estimate (NaN before the first batch)."""
        return self._tau if self._auto is None else float(self._auto.tau)

    def observe(self, teacher: Prediction) -> None:
        """Use the teacher's norms of the first batches to calibrate ``tau='auto'`` and to check the loss balance."""
        assert teacher.feature_norm is not None
        if self._auto is not None and not self._auto.calibrated:
            self._auto.update(teacher.feature_norm)
        if not self._balance_checked:
            self._balance_checked = True
            self._check_balance(teacher.feature_norm)

    @property
    def calibrated(self) -> bool:
        """After the first batch, and with ``tau='auto'`` once tau is fixed."""
        return self._balance_checked and (self._auto is None or self._auto.calibrated)

    @torch.compiler.disable
    def _check_balance(self, feature_norm: Tensor) -> None:
        norm = float(feature_norm.float().mean())
        ratio = self.loss_weight * float(norm_scale(torch.tensor([norm]), self.tau, self.mode)) ** 2
        if ratio > MAX_GRADIENT_RATIO:
            _logger.warning(
                f'FNKDLoss: tau={self.tau:.4g} with loss_weight={self.loss_weight:g} makes the soft gradient about '
                f"{ratio:.3g} times the hard one, by loss_weight * tau^2 / norm^2 with the teacher's mean feature norm "
                f"{norm:.4g}; the paper's rule is 1; tau='auto' follows it."
            )

    def get_extra_state(self) -> dict[str, float]:
        """The state of ``tau='auto'``, for ``state_dict()``; empty if tau is a number."""
        return {} if self._auto is None else self._auto.state()

    def set_extra_state(self, state: Any) -> None:
        """Load the result of :meth:`get_extra_state`; ignored if tau is a number."""
        if self._auto is not None and state:
            self._auto.restore(state)

    def log_vars(self) -> dict[str, float]:
        """``tau``."""
        return {'tau': self.tau}

    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        """:math:`(z - b) s + b`."""
        logits, norm, origin = prediction
        assert norm is not None
        if self.detach_norm:
            norm = norm.detach()
        tau = self._tau if self._auto is None else self._auto.tau
        return ScaledLogits(logits, FeatureNormScale(norm, tau, self.mode), origin)
