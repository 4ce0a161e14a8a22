"""Feature normalized knowledge distillation."""

import logging
from typing import Any

from torch import Tensor, device, tensor

from fnkd_plugin.errors import SetupError, check_number
from fnkd_plugin.losses.auto_tau import AutoTau
from fnkd_plugin.losses.scaled_logits import FeatureNormScale, ScaledLogits
from fnkd_plugin.losses.soft_loss import SoftTargetLoss
from fnkd_plugin.prediction import Prediction

_logger = logging.getLogger(__name__)


class FNKDLoss(SoftTargetLoss):
    r"""Knowledge distillation whose temperature is each sample's own feature norm (Eq. 10 to 12).

    .. math:: \lambda^2 H\big(\sigma(\tau v / \lVert f_t \rVert), \sigma(\tau z / \lVert f_s \rVert)\big)

    with the bias left unscaled (see :func:`fnkd_plugin.functional.scale_by_feature_norm`). The defaults are the
    authors' code: norms below :math:`\tau` are left alone and gradient flows through the student's norm.
    ``mode='normalize', detach_norm=True`` is Eq. 12 to the letter; it can collapse training, since nothing
    then holds :math:`\lVert f_s \rVert` (a warning says so).

    Args:
        tau: The norm to rescale features to, > 0; or ``'auto'``, a third of the teacher's mean feature norm
            (our choice: it solves the paper's rule :math:`\lambda^2\tau^2/\text{mean}\lVert f\rVert^2 \approx 1` at
            :math:`\lambda = 3`), see :class:`AutoTau`.
        loss_weight: :math:`\lambda^2 \ge 0`.
        mode: ``'clip'`` (authors' code) or ``'normalize'`` (Eq. 10). Where the student's norms (``student_norm`` in
            the log) are below tau, ``'clip'`` asks it for the teacher's softened distribution at its own T = 1, which
            its hard loss contradicts; ``'normalize'`` fits there (docs/results.md).
        detach_norm: Whether to hold the student's norm fixed in the gradient, as Eq. 12 does.

    Raises:
        SetupError: If a number is out of range or not finite, or ``mode`` is unknown.
    """

    needs_feature_norm = True
    needs_all_logits = False

    def __init__(
        self,
        tau: float | str = 'auto',
        loss_weight: float = 9.0,
        mode: str = 'clip',
        detach_norm: bool = False,
    ) -> None:
        super().__init__(loss_weight)
        if mode not in ('clip', 'normalize'):
            raise SetupError(f"FNKDLoss: mode must be 'clip' or 'normalize', but is {mode!r}.")
        if isinstance(tau, str) and tau != 'auto':
            raise SetupError(f"FNKDLoss: tau must be a number > 0 or 'auto', but is {tau!r}.")
        self._auto = AutoTau() if tau == 'auto' else None
        self._tau = 0.0 if self._auto else check_number('FNKDLoss', 'tau', tau, positive=True)
        self.mode = mode
        self.detach_norm = detach_norm
        if mode == 'normalize' and detach_norm:
            _logger.warning(
                "FNKDLoss: mode='normalize' with detach_norm=True is Eq. 12 to the letter; the student's "
                'feature norm is then free to grow, and training can collapse. Watch student_norm in the log.'
            )

    @property
    def tau(self) -> float:
        """The norm features are rescaled to; with ``'auto'`` the estimate so far (NaN before any batch)."""
        return self._tau if self._auto is None else float(self._auto.tau)

    def begin(self, device: device) -> None:
        """Let ``tau='auto'`` resume."""
        if self._auto is not None:
            self._auto.begin(device)

    def catch_up(self) -> None:
        """Let ``tau='auto'`` store what it has learned."""
        if self._auto is not None:
            self._auto.catch_up()

    def observe(self, teacher: Prediction) -> None:
        """Let ``tau='auto'`` learn from the first batches."""
        if self._auto is not None:
            assert teacher.feature_norm is not None
            self._auto.update(teacher.feature_norm)

    def get_extra_state(self) -> dict[str, float]:
        """What ``tau='auto'`` has learned, for ``state_dict()``; nothing if tau is a number."""
        return {} if self._auto is None else self._auto.state()

    def set_extra_state(self, state: Any) -> None:
        """Go on with what was learned; nothing if tau is a number."""
        if self._auto is not None and state:
            self._auto.restore(state)

    def log_vars(self) -> dict[str, Tensor]:
        """``tau``."""
        return {'tau': tensor(self._tau) if self._auto is None else self._auto.tau.float()}

    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        """:math:`(z - b) s + b`."""
        logits, norm, origin = prediction
        assert norm is not None
        if self.detach_norm:
            norm = norm.detach()
        tau = self._tau if self._auto is None else self._auto.tau
        return ScaledLogits(logits, FeatureNormScale(norm, tau, self.mode), origin)
