"""``tau='auto'``: calibrates tau on the teacher's feature norms in the first training batches."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from fnkd_plugin.errors import SetupError

CALIBRATION_BATCHES = 20
LAMBDA = 3.0
_logger = logging.getLogger(__name__)


class AutoTau:
    r""":math:`\tau = \text{mean}\lVert f_t \rVert / 3`, the mean taken over the first 20 training batches.

    Our choice, from the paper's rule :math:`\lambda^2 \tau^2 / \text{mean}\lVert f \rVert^2 \approx 1` at
    :math:`\lambda = 3`. The first 20 batches use the running estimate, which synchronises with the GPU; then tau is
    fixed and logged. The mean is over all processes.

    Attributes:
        tau: The current estimate: NaN before the first batch, then a scalar tensor on the teacher's device, so that
            compiled graphs are not recompiled for each value, and a float once it is fixed.
        calibrated: Whether it is fixed.
    """

    def __init__(self) -> None:
        self._sum, self._count, self._batches = 0.0, 0.0, 0
        self.tau: float | Tensor = math.nan
        self.calibrated = False

    def state(self) -> dict[str, float]:
        """The state as plain numbers, for checkpoints."""
        return dict(sum=self._sum, count=self._count, batches=self._batches)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state`.

        Raises:
            SetupError: If the state is invalid.
        """
        found = [state.get(name) if isinstance(state, Mapping) else None for name in ('sum', 'count', 'batches')]
        if not all(isinstance(x, (int, float)) and 0 <= x < math.inf for x in found):
            raise SetupError(f"FNKDLoss: the stored state of tau='auto' must be three numbers >= 0, but is {state!r}.")
        self._sum, self._count, self._batches = float(found[0]), float(found[1]), int(found[2])  # type: ignore[arg-type]
        self.calibrated = self._batches >= CALIBRATION_BATCHES
        self.tau = self._value()
        _logger.info(f"FNKDLoss: tau='auto' resumed as {self.tau:.4g}.")

    @torch.compiler.disable
    def update(self, feature_norm: Tensor) -> None:
        """Add the teacher's feature norms [N] of one of the first batches.

        Raises:
            SetupError: If their mean is zero or non-finite.
        """
        norms = feature_norm.float()
        total = torch.stack([norms.sum(), norms.new_tensor(len(norms))])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)
        norm_sum, count = total.tolist()
        if not 0 < norm_sum < math.inf:
            raise SetupError(
                f"FNKDLoss: tau='auto' needs a finite mean feature norm > 0, but it is {norm_sum / max(count, 1)}; "
                'check the teacher, or set tau to a number.'
            )
        self._sum, self._count, self._batches = self._sum + norm_sum, self._count + count, self._batches + 1
        self.tau = self._value()
        if self._batches < CALIBRATION_BATCHES:
            self.tau = torch.tensor(self.tau, dtype=norms.dtype, device=norms.device)
            return
        self.calibrated = True
        _logger.info(
            f"FNKDLoss: tau='auto' fixed at {self.tau:.4g}, a third of the teacher's mean feature norm over "
            f'{self._count:.0f} images.'
        )

    def _value(self) -> float:
        return self._sum / self._count / LAMBDA if self._count else math.nan
