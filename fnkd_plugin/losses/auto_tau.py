"""``tau='auto'``: a norm to rescale to, from the teacher's norms on the first training batches."""

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
    :math:`\lambda = 3`. The first 20 batches use the running estimate and read their norms on the host; then tau is
    fixed and logged. All processes use the mean over all of them.

    Attributes:
        tau: The estimate so far: a number once it is fixed; before, a scalar tensor on the teacher's device, so that a
            compiled graph need not be compiled for each value. NaN before the first batch.
        settled: Whether it is fixed.
    """

    def __init__(self) -> None:
        self._sum, self._count, self._batches = 0.0, 0.0, 0
        self.tau: float | Tensor = math.nan
        self.settled = False

    def state(self) -> dict[str, float]:
        """Plain numbers, for checkpoints."""
        return dict(sum=self._sum, count=self._count, batches=self._batches)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state`.

        Raises:
            SetupError: If it is not one.
        """
        found = [state.get(name) if isinstance(state, Mapping) else None for name in ('sum', 'count', 'batches')]
        if not all(isinstance(x, (int, float)) and 0 <= x < math.inf for x in found):
            raise SetupError(f"FNKDLoss: the stored state of tau='auto' must be three numbers >= 0, but is {state!r}.")
        self._sum, self._count, self._batches = float(found[0]), float(found[1]), int(found[2])  # type: ignore[arg-type]
        self.settled = self._batches >= CALIBRATION_BATCHES
        self.tau = self._value()
        _logger.info(f"FNKDLoss: tau='auto' resumed as {self.tau:.4g}.")

    @torch.compiler.disable
    def update(self, feature_norm: Tensor) -> None:
        """Add the teacher's feature norms [N] of one of the first batches.

        Raises:
            SetupError: If their mean is zero or not finite, since no tau > 0 follows from it.
        """
        norms = feature_norm.float()
        total = torch.stack([norms.sum(), norms.new_tensor(len(norms))])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)
        norm_sum, count = total.tolist()
        if not 0 < norm_sum < math.inf:
            raise SetupError(
                f"FNKDLoss: tau='auto' cannot follow from a mean teacher feature norm of {norm_sum / max(count, 1)}; "
                'check the teacher, or set tau to a number.'
            )
        self._sum, self._count, self._batches = self._sum + norm_sum, self._count + count, self._batches + 1
        self.tau = self._value()
        if self._batches < CALIBRATION_BATCHES:
            self.tau = torch.tensor(self.tau, dtype=norms.dtype, device=norms.device)
            return
        self.settled = True
        _logger.info(
            f"FNKDLoss: tau='auto' settled at {self.tau:.4g}, a third of the teacher's mean feature norm over "
            f"{self._count:.0f} images. mode='clip' leaves smaller norms alone: should student_norm be below it in "
            "this log, mode='normalize' fits."
        )

    def _value(self) -> float:
        return self._sum / self._count / LAMBDA if self._count else math.nan
