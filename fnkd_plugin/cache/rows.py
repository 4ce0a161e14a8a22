"""The images of a cache's rows, and a live teacher's rows for a batch of them."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from fnkd_plugin.cache.store import rows_of
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay.batch_augments import batch_augments_of
from fnkd_plugin.mm.replay.fixed_batches import order_of
from fnkd_plugin.mm.replay.seeded_dataset import Replay, SampleIndex

if TYPE_CHECKING:
    from fnkd_plugin.teachers.teacher import Teacher

_order_of = lru_cache(maxsize=1)(order_of)


def samples_of(replay: Replay, count: int, view: int, start: int, end: int) -> list[SampleIndex]:
    """The images of the rows ``start`` to ``end`` of a view.

    Row i is image i, or, if batches of images are mixed, the i-th image that the view draws.

    Args:
        replay: The views of the cache.
        count: Number of images.
        view: The view.
        start: The first row.
        end: The row after the last.
    """
    if replay.batch_size is None:
        return [SampleIndex(i, view) for i in range(start, end)]
    order = _order_of(replay.data_seed, view, count)[start:end].tolist()
    return [SampleIndex(i, view, batch=row // replay.batch_size) for row, i in enumerate(order, start)]


def predict_rows(teacher: 'Teacher', preprocessor: nn.Module, batch: Any, kind: np.dtype) -> tuple[np.ndarray, Tensor]:
    """A live teacher's predictions of a batch, computed as in a training step.

    Args:
        teacher: Prepared for the student's images.
        preprocessor: The student's data preprocessor, on the device to run on.
        batch: A collated batch of stamped samples.
        kind: Type of the rows, see :func:`~fnkd_plugin.cache.store.row_type`.

    Returns:
        Rows [N], and the preprocessed images [N, C, H, W].

    Raises:
        SetupError: If a logit does not fit the type or is non-finite, or batch augmentations did not mix the images.
    """
    data = preprocessor(batch, True)
    if batch_augments_of(preprocessor) is not None and not data['data_samples'][0].get('mixed'):
        raise SetupError(
            'Cache: the batch augmentations have not mixed the images; check that these have labels (gt_label) and '
            'the data preprocessor has num_classes.'
        )
    prediction = teacher.predict(data['inputs'], data['data_samples'])
    pixels = np.array([sample.stamp.pixels for sample in data['data_samples']], dtype='u4')
    norms, logits = prediction.feature_norm, prediction.logits.float()
    _check_range(logits, kind['logits'].base, data['data_samples'])
    return rows_of(kind, pixels, norms, logits, prediction.origin), data['inputs']


def _check_range(logits: Tensor, dtype: np.dtype, data_samples: Any) -> None:
    limit = float(np.finfo(dtype).max)
    wrong = ~(logits.abs() <= limit)
    if not wrong.any():
        return
    row, of_class = wrong.nonzero()[0].tolist()
    value, sample = float(logits[row, of_class]), data_samples[row]
    raise SetupError(
        f'Cache: the logit of class {of_class} for image {sample.stamp.sample} '
        f'({sample.get("img_path") or "in memory"}) in view {sample.stamp.view} is {value:g}, and {dtype} holds finite '
        f'numbers up to {limit:g}; check the teacher and the image, or make another cache with --dtype float32.'
    )
