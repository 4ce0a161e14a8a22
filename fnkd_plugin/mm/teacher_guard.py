"""Saying at once when a teacher's output is no number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fnkd_plugin.host_copy import HostCopy
from fnkd_plugin.prediction import Prediction


class TeacherGuard:
    """Raises on the first batch whose teacher logits are not finite, and names its images.

    On a CPU that is before the student's step. On an accelerator, looking at once would make every step wait for the
    teacher: the flags travel to the host behind the teacher's kernels, and :meth:`look_back` reads them when the next
    batch comes, before anything of it is queued. In a compiled graph :meth:`check` only makes the flags, and
    :meth:`catch_up` does the rest.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._flags: tuple[Tensor, Sequence[Any] | None] | None = None
        self._pending: tuple[HostCopy, Sequence[Any] | None] | None = None

    def check(self, prediction: Prediction, data_samples: Sequence[Any] | None) -> None:
        """Check a batch, on an accelerator by the next :meth:`look_back`.

        Raises:
            FloatingPointError: If a logit is NaN or infinite.
        """
        self._flags = torch.isfinite(prediction.logits).all(1), data_samples
        if not torch.compiler.is_compiling():
            self.catch_up()

    def catch_up(self) -> None:
        """What :meth:`check` left undone in a compiled graph; to be called outside of it.

        Raises:
            FloatingPointError: As :meth:`check`.
        """
        if self._flags is None:
            return
        self.look_back()
        finite, data_samples = self._flags
        self._flags = None
        copy = HostCopy(finite)
        self._pending = copy, data_samples
        if copy.is_here:
            self.look_back()

    def look_back(self) -> None:
        """Raise for the batch before, if it was broken; waits for no more than its flags.

        Raises:
            FloatingPointError: As :meth:`check`.
        """
        if self._pending is None:
            return
        flags, data_samples = self._pending
        self._pending = None
        self._raise_if_broken(flags.read(), data_samples)

    def _raise_if_broken(self, finite: Tensor, data_samples: Sequence[Any] | None) -> None:
        if finite.all():
            return
        rows = (~finite).nonzero().flatten().tolist()
        names = [_name(data_samples[i], i) if data_samples else f'image {i} of the batch' for i in rows]
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        raise FloatingPointError(
            f'{self._name}: its logits are NaN or infinite for {", ".join(names[:5])}{more}. '
            'Check the weights of the teacher and these images.'
        )


def _name(sample: Any, row: int) -> str:
    return str(sample.get('img_path') or sample.get('sample_idx') or f'image {row} of the batch')
