"""Saying at once when a teacher's output is no number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fnkd_plugin.prediction import Prediction


class TeacherGuard:
    """Raises on the first batch whose teacher logits are not finite, and names its images.

    On a CPU that is before the student's step. On CUDA, looking at once would make every step wait for the
    teacher: the flags travel to the host behind the teacher's kernels, and :meth:`look_back` reads them when
    the next batch comes, before anything of it is queued.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending: tuple[Tensor, torch.cuda.Event | None, Sequence[Any] | None] | None = None

    @torch.compiler.disable
    def check(self, prediction: Prediction, data_samples: Sequence[Any] | None) -> None:
        """Check a batch, on CUDA by the next :meth:`look_back`.

        Raises:
            FloatingPointError: If a logit is NaN or infinite.
        """
        finite = torch.isfinite(prediction.logits).all(1)
        if not finite.is_cuda:
            self._raise_if_broken(finite, data_samples)
            return
        flags = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True)
        flags.copy_(finite, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending = flags, arrived, data_samples

    @torch.compiler.disable
    def look_back(self) -> None:
        """Raise for the batch before, if it was broken; waits for no more than its flags.

        Raises:
            FloatingPointError: As :meth:`check`.
        """
        if self._pending is None:
            return
        flags, arrived, data_samples = self._pending
        self._pending = None
        if arrived is not None:
            arrived.synchronize()
        self._raise_if_broken(flags, data_samples)

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
