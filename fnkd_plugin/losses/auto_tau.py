"""``tau='auto'``: a norm to rescale to, learned from the teacher on the first training batches."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed

from fnkd_plugin.errors import SetupError
from fnkd_plugin.framework import print_log, run_messages

CALIBRATION_BATCHES = 20
LAMBDA = 3.0
_KEY = 'fnkd_auto_tau_'
# How many losses have begun to learn in each run: each has a key of its own, the same when the run is resumed.
_begun: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class AutoTau:
    r""":math:`\tau = \text{mean}\lVert f_t \rVert / 3`, the mean taken over the first training batches as they come.

    Our choice, from the paper's rule :math:`\lambda^2 \tau^2 / \text{mean}\lVert f \rVert^2 \approx 1` at
    :math:`\lambda = 3`. During the first 20 batches the running estimate is used, then it is kept and logged.
    All processes use the mean over all of them. Within a Runner the estimate lives in its message hub, so that it
    is stored with each checkpoint and a resumed run continues with the same; elsewhere it is in the ``state_dict()`` of
    its loss.

    Attributes:
        tau: The estimate so far, NaN before the first batch. All that a compiled graph reads: counters, which
            change from batch to batch, would have it compiled anew each time.
    """

    def __init__(self) -> None:
        self.tau = float('nan')
        self._sum = 0.0
        self._count = 0.0
        self._batches = 0
        self._key: str | None = None
        hub = run_messages()
        if hub is not None:
            # Runs started in the same second share a hub; a new loss starts anew.
            for key in [key for key in hub.runtime_info if key.startswith(_KEY)]:
                hub.pop_info(key)
            _begun[hub] = 0

    @property
    def settled(self) -> bool:
        """Whether the estimate will change no more."""
        return self._batches >= CALIBRATION_BATCHES

    def state(self) -> dict[str, float]:
        """What was learned so far, as plain numbers."""
        return {'sum': self._sum, 'count': self._count, 'batches': self._batches}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a :meth:`state`."""
        self._sum, self._count, self._batches = state['sum'], state['count'], int(state['batches'])
        self.tau = self._sum / self._count / LAMBDA if self._count else float('nan')

    @torch.compiler.disable
    def update(self, feature_norm: Tensor) -> None:
        """Take in the teacher's feature norms [N] of one batch, until settled.

        Raises:
            SetupError: If their mean is zero or not finite, since no tau > 0 follows from it.
        """
        if self.settled:
            return
        hub = run_messages()
        if hub is not None and self._key is None:
            self._resume(hub)
            if self.settled:
                return
        batch = feature_norm.float()
        total = torch.stack([batch.sum(), batch.new_tensor(float(len(batch)))])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)
        norm_sum, count = total.tolist()
        self._sum += norm_sum
        self._count += count
        self._batches += 1
        self.tau = self._sum / self._count / LAMBDA
        if not 0 < self.tau < float('inf'):
            raise SetupError(
                f"FNKDLoss: tau='auto' cannot follow from a mean teacher feature norm of {norm_sum / count}; "
                'check the teacher, or set tau to a number.'
            )
        if hub is not None and self._key is not None:
            hub.update_info(self._key, self.state())
        if self.settled:
            print_log(
                f"FNKDLoss: tau='auto' settled at {self.tau:.4g}, a third of the teacher's mean feature norm "
                f'over {self._count:.0f} images.',
                logger='current',
            )

    def _resume(self, hub: Any) -> None:
        index = _begun.get(hub, 0)
        _begun[hub] = index + 1
        self._key = f'{_KEY}{index}'
        saved = hub.get_info(self._key)
        if saved is not None:
            self.restore(saved)
            print_log(f"FNKDLoss: tau='auto' resumed as {self.tau:.4g}.", logger='current')
