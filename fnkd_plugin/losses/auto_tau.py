"""``tau='auto'``: a norm to rescale to, learned from the teacher on the first training batches."""

import logging
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed

from fnkd_plugin.errors import SetupError
from fnkd_plugin.host_copy import HostCopy

_logger = logging.getLogger(__name__)

CALIBRATION_BATCHES = 20
LAMBDA = 3.0
_KEY = 'fnkd_auto_tau_'
_NAMES = ('sum', 'count', 'batches')
# How many losses have begun to learn in each run: each has a key of its own, the same when the run is resumed.
_begun: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class AutoTau:
    r""":math:`\tau = \text{mean}\lVert f_t \rVert / 3`, the mean taken over the first training batches as they come.

    Our choice, from the paper's rule :math:`\lambda^2 \tau^2 / \text{mean}\lVert f \rVert^2 \approx 1` at
    :math:`\lambda = 3`. During the first 20 batches the running estimate is used, then it is kept and logged.
    All processes use the mean over all of them. Within a Runner the estimate lives in its message hub, so that it
    is stored with each checkpoint and a resumed run continues with the same; elsewhere it is in the ``state_dict()`` of
    its loss.

    It is a tensor on the teacher's device, so that no step waits for it, and is learned without a branch, so that a
    compiled graph is compiled once.

    Attributes:
        tau: The estimate so far, a scalar tensor; NaN before the first batch.
    """

    def __init__(self) -> None:
        # The sum of norms, how many, of how many batches: in fp64, as Python's numbers.
        self._state = torch.zeros(3, dtype=torch.float64)
        self.tau = torch.tensor(float('nan'), dtype=torch.float64)
        self._late: HostCopy | None = None
        self._begun = self._learned = self._settled = False
        self._key: str | None = None
        hub = run_messages()
        if hub is not None:
            # Runs started in the same second share a hub; a new loss starts anew.
            for key in [key for key in hub.runtime_info if key.startswith(_KEY)]:
                hub.pop_info(key)
            _begun[hub] = 0

    def begin(self, device: torch.device) -> None:
        """Find what a resumed run had learned, unless a batch has been seen; to be called outside a compiled graph."""
        if self._begun:
            return
        self._state, self.tau = self._state.to(device), self.tau.to(device)
        hub = run_messages()
        if hub is None:
            return
        if self._key is None:
            index = _begun.get(hub, 0)
            _begun[hub] = index + 1
            self._key = f'{_KEY}{index}'
        saved = hub.get_info(self._key)
        if saved is None:
            return
        self.restore(saved)
        _logger.info(f"FNKDLoss: tau='auto' resumed as {float(self.tau):.4g}.")

    def state(self) -> dict[str, float]:
        """What was learned so far, as plain numbers."""
        return dict(zip(_NAMES, self._state.tolist(), strict=True))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        found = [float(state[name]) for name in _NAMES]
        self._state.copy_(torch.tensor(found, dtype=torch.float64))
        self.tau = _tau_of(self._state)
        self._begun, self._settled = found[2] > 0, found[2] >= CALIBRATION_BATCHES

    def update(self, feature_norm: Tensor) -> None:
        """Take in the teacher's feature norms [N] of one batch, until settled.

        Raises:
            SetupError: If their mean is zero or not finite, since no tau > 0 follows from it; on an accelerator with
                the next batch.
        """
        if not torch.compiler.is_compiling():
            if self._settled:
                return
            self.begin(feature_norm.device)
        self._learn(feature_norm)
        if not torch.compiler.is_compiling():
            self.catch_up()

    def catch_up(self) -> None:
        """What :meth:`update` left undone in a compiled graph; to be called outside of it.

        Raises:
            SetupError: As :meth:`update`.
        """
        if self._settled or not self._learned:
            return
        self._begun, self._learned = True, False
        hub = run_messages()
        if hub is not None and self._key is not None:
            hub.update_info(self._key, dict(zip(_NAMES, self._state, strict=True)))
        if self._late is not None:
            self._look(self._late)
        self._late = HostCopy(self._state)
        if self._late.is_here:
            self._look(self._late)
            self._late = None

    @torch.no_grad()
    def _learn(self, feature_norm: Tensor) -> None:
        norms = feature_norm.float()
        # Filled on the device: a number brought there would make the host wait.
        total = torch.stack([norms.sum(), norms.new_full((), len(norms))])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)
        state = self._state.to(norms.device)
        learned = state + torch.cat([total, total.new_ones(1)])
        self._state = torch.where(state[2] < CALIBRATION_BATCHES, learned, state)
        self.tau = _tau_of(self._state)
        self._learned = True

    def _look(self, state: HostCopy) -> None:
        norm_sum, count, batches = state.read().tolist()
        if not 0 < norm_sum < float('inf'):
            raise SetupError(
                f"FNKDLoss: tau='auto' cannot follow from a mean teacher feature norm of {norm_sum / count}; "
                'check the teacher, or set tau to a number.'
            )
        if batches >= CALIBRATION_BATCHES and not self._settled:
            self._settled = True
            _logger.info(
                f"FNKDLoss: tau='auto' settled at {norm_sum / count / LAMBDA:.4g}, a third of the teacher's mean "
                f"feature norm over {count:.0f} images. mode='clip' leaves smaller norms alone: should student_norm be "
                "below it in this log, mode='normalize' fits."
            )


def _tau_of(state: Tensor) -> Tensor:
    return state[0] / state[1] / LAMBDA


def run_messages() -> Any:
    """The message hub of the current run, which its checkpoints hold; None outside a Runner."""
    try:
        from mmengine.logging import MessageHub
    except ImportError:
        return None
    hub = MessageHub.get_current_instance()
    # Outside a Runner the current hub is MMEngine's own default, which outlives any one training.
    return None if hub.instance_name == 'mmengine' else hub
