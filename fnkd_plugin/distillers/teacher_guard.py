"""Saying at once when a teacher's output is no number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fnkd_plugin.prediction import Prediction


class TeacherGuard:
    """Raises on the first batch whose teacher logits are not finite, and names its images.

    On a CPU that is before the student's step. On an accelerator looking at once would make every step wait
    for the teacher, so each batch is looked at when the next one comes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending: tuple[Tensor, Sequence[Any] | None] | None = None

    @torch.compiler.disable
    def check(self, prediction: Prediction, data_samples: Sequence[Any] | None) -> None:
        """Check this batch (CPU) or the one before (accelerator).

        Raises:
            FloatingPointError: If a logit is NaN or infinite.
        """
        if self._pending is not None:
            self._raise_if_broken(*self._pending)
            self._pending = None
        finite = torch.isfinite(prediction.logits).all(1)
        if finite.is_cpu:
            self._raise_if_broken(finite, data_samples)
        else:
            self._pending = finite, data_samples

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
