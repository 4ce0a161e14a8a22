"""Training on the very images that a teacher has seen before."""

from typing import NamedTuple


class Replay(NamedTuple):
    """Augmentations that come again: those of epoch e are those of view ``e % views`` under ``seed``.

    Attributes:
        seed: The seed of the augmentations; the rest of a run has its own.
        views: How many there are of each image.
        batch_size: Of the batches that come again, too, as mixed images need; None if batches are the run's own.
    """

    seed: int
    views: int
    batch_size: int | None = None
