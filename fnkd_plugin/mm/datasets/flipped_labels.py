"""Synthetic label noise, to measure methods that find wrong labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS

from fnkd_plugin.errors import SetupError, check_number
from fnkd_plugin.taxonomy import taxonomy_of
from fnkd_plugin.taxonomy.taxonomy import groups_of_classes


def flip_labels(
    labels: np.ndarray,
    num_classes: int,
    rate: float,
    seed: int = 0,
    neighbours: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """A copy of ``labels`` with a fraction of them flipped, deterministic in its arguments (our choice of noise model).

    Args:
        labels: Class indices [N].
        num_classes: K.
        rate: Fraction to flip of the labels that can be flipped, in [0, 1); the number is rounded.
        seed: Seed of the flips.
        neighbours: For each class the indices of its near classes A, one of which replaces the label; labels of classes
            without any are kept. None for any other class with equal probability.

    Returns:
        Class indices [N].

    Raises:
        SetupError: If ``rate`` is out of range, there is only one class, or no class has neighbours.
    """
    check_number('flipped labels', 'rate', rate, below=1)
    others = None if neighbours is None else _without_themselves(neighbours)
    can_flip = np.flatnonzero(flippable(labels, neighbours))
    if num_classes < 2 or len(can_flip) == 0:
        raise SetupError('flipped labels: no label can be flipped to another class; give other groups, or none.')
    random = np.random.default_rng(seed)
    flipped = labels.copy()
    for i in random.choice(can_flip, round(rate * len(can_flip)), replace=False):
        if others is None:
            flipped[i] = (labels[i] + random.integers(1, num_classes)) % num_classes
        else:
            flipped[i] = random.choice(others[labels[i]])
    return flipped


def flippable(labels: np.ndarray, neighbours: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """Which labels :func:`flip_labels` may flip, booleans [N]: those whose class has a neighbour."""
    if neighbours is None:
        return np.ones(len(labels), dtype=bool)
    return np.array([len(near) > 0 for near in _without_themselves(neighbours)])[labels]


def _without_themselves(neighbours: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[k for k in near if k != c] for c, near in enumerate(neighbours)]


@DATASETS.register_module()
def FlippedLabels(of: str | type, rate: float = 0.1, seed: int = 0, groups: Any = None, **kwargs: Any) -> BaseDataset:  # noqa: N802
    """Builds the data set ``of`` and flips some of its labels (``gt_label``).

    Returns that data set itself, so that samplers, hooks and wrappers work with it. Use it in any config as
    ``train_dataloader=dict(dataset=dict(type='FlippedLabels', of='CUB2010', rate=0.1))``, or by ``--cfg-options``. Each
    sample keeps its original label as ``clean_label``, which ``tools/analyze.py`` uses as ground truth, and has
    ``could_flip``, whether it could have been flipped.

    Args:
        of: Type of the data set, a subclass of MMEngine's ``BaseDataset`` with one label per image.
        rate: See :func:`flip_labels`.
        seed: See :func:`flip_labels`; not the run's seed, so that several runs have the same labels.
        groups: Flip within these groups, see :func:`fnkd_plugin.taxonomy.taxonomy_of`; None for any other class.
        **kwargs: Arguments of the data set.

    Raises:
        SetupError: If ``of`` is not such a data set, or ``groups`` have other classes.
    """
    dataset = DATASETS.build(dict(type=of, **kwargs))
    if not isinstance(dataset, BaseDataset):
        raise SetupError(
            f'FlippedLabels: {type(dataset).__name__} is not a BaseDataset with its own labels; put FlippedLabels '
            'inside that wrapper.'
        )
    dataset.full_init()
    samples = [dataset.get_data_info(i) for i in range(len(dataset))]
    if not all(np.ndim(sample.get('gt_label')) == 0 and sample.get('gt_label') is not None for sample in samples):
        raise SetupError(f'FlippedLabels: the samples of {type(dataset).__name__} do not have one gt_label each.')
    labels = np.array([sample['gt_label'] for sample in samples], dtype=np.int64)
    names = dataset.metainfo.get('classes') or [str(k) for k in range(int(labels.max()) + 1)]
    neighbours = None
    if groups is not None:
        taxonomy = taxonomy_of(groups_of_classes(groups, names))
        taxonomy.check_classes(names, f'FlippedLabels: {type(dataset).__name__}')
        neighbours = taxonomy.neighbours
    flipped = flip_labels(labels, len(names), rate, seed, neighbours)
    could_flip = flippable(labels, neighbours)
    for sample, label, could in zip(samples, flipped.tolist(), could_flip.tolist(), strict=True):
        sample.update(gt_label=label, clean_label=int(sample['gt_label']), could_flip=could)
    dataset.data_list = samples
    if dataset.serialize_data:
        dataset.data_bytes, dataset.data_address = dataset._serialize_data()
    print_log(
        f'FlippedLabels: {int((flipped != labels).sum())} of {len(labels)} labels of {type(dataset).__name__} are '
        f'flipped {"to any other class" if groups is None else "within their groups"} (seed {seed}).',
        logger='current',
    )
    return dataset
