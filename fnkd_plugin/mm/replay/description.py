"""A description of a run's training images as plain data."""

import logging
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from fnkd_plugin.mm.checkpoints import read_checkpoint
from fnkd_plugin.mm.labels import class_names
from fnkd_plugin.mm.replay.seeded_dataset import base_of

TRAINING_IMAGES = 'training_images'
"""Key of the :func:`images_key` in a checkpoint's ``meta``."""

_ADDRESS = re.compile(r' at 0x[0-9a-f]+')


def text_of(value: Any) -> str:
    """An object's ``repr`` without memory addresses; of a path its text."""
    text = str(value) if isinstance(value, Path) else repr(value)
    return ' '.join(_ADDRESS.sub('', text).split())


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers that have a pipeline themselves."""
    if hasattr(dataset, 'pipeline'):
        yield dataset
    else:
        for inner in _inside(dataset):
            yield from leaves(inner)


def describe_pipeline(dataset: Any) -> dict[str, Any]:
    """Type and size of a data set, its class names, and each transform with its options."""
    return dict(
        dataset=_kinds(dataset),
        samples=len(dataset),
        classes=class_names(dataset),
        pipeline=[text_of(step) for leaf in leaves(dataset) for step in leaf.pipeline.transforms],
    )


def images_key(dataset: Any, seed: int) -> str:
    """SHA-256 of :func:`describe_pipeline` and the seed of the augmentations (64 bits)."""
    return sha256(f'{seed} {describe_pipeline(dataset)}'.encode()).hexdigest()


def warn_if_trained_on(teacher: Any, key: str) -> None:
    """Warn of checkpoints in a teacher's config that were trained on the crops of this :func:`images_key`.

    A teacher is overconfident on its own training crops. Checkpoints of other programs have no such key.
    """
    for path in _trained_on(teacher, key):
        print_log(
            f'The teacher {path} was trained on exactly the crops of this run (same data, pipeline and seed), on which '
            'it is overconfident; train teachers with another seed (randomness.seed).',
            'current',
            logging.WARNING,
        )


def _trained_on(teacher: Any, key: str) -> Iterator[str]:
    if not isinstance(teacher, Mapping):
        return
    for member in teacher.get('teachers') or ():
        yield from _trained_on(member, key)
    path = teacher.get('checkpoint')
    if isinstance(path, (str, Path)) and Path(path).is_file():
        meta = read_checkpoint(path).get('meta')
        if isinstance(meta, dict) and meta.get(TRAINING_IMAGES) == key:
            yield str(path)


def _inside(dataset: Any) -> list[Any]:
    return getattr(dataset, 'datasets', None) or [dataset.dataset]


def _kinds(dataset: Any) -> str:
    name = base_of(dataset).__name__
    return name if hasattr(dataset, 'pipeline') else f'{name}({", ".join(map(_kinds, _inside(dataset)))})'
