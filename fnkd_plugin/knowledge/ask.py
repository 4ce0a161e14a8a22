"""From a batch of a data loader to rows of knowledge."""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from fnkd_plugin.knowledge.store import rows_of

if TYPE_CHECKING:
    from fnkd_plugin.teachers.teacher import Teacher


def ask(teacher: 'Teacher', preprocessor: nn.Module, batch: Any, kind: np.dtype) -> tuple[np.ndarray, Tensor]:
    """What a live teacher says of a batch, as a training step would ask it.

    Args:
        teacher: Prepared for the student's images.
        preprocessor: The student's data preprocessor, on the device to run on.
        batch: Collated, its samples stamped.
        kind: Of the rows, see :func:`~fnkd_plugin.knowledge.store.row_type`.

    Returns:
        Rows [N], and the preprocessed images [N, C, H, W].

    Raises:
        SetupError: If a logit does not fit.
    """
    data = preprocessor(batch, True)
    prediction = teacher.predict(data['inputs'], data['data_samples'])
    pixels = np.array([sample.stamp.pixels for sample in data['data_samples']], dtype='u4')
    norms, logits = prediction.feature_norm, prediction.logits.float()
    return rows_of(kind, pixels, norms, logits, prediction.origin), data['inputs']
