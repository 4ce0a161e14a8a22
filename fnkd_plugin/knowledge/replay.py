"""Training on the very images that a teacher has seen before."""

from typing import Any, NamedTuple

from fnkd_plugin.errors import SetupError
from fnkd_plugin.knowledge.mixing import batch_augments_of, names_of


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

    def check_mixing(self, preprocessor: Any) -> None:
        """Compare with whether a data preprocessor mixes the images of a batch.

        Raises:
            SetupError: If only one of the two knows mixed images.
        """
        augments = batch_augments_of(preprocessor)
        if augments is not None and self.batch_size is None:
            raise SetupError(
                f"CachedTeacher: {names_of(augments)} mixes images of a batch, but the cache's teacher saw them "
                'unmixed; make a cache with this config, take the batch augmentations out of it, or teach with the '
                'live teacher.'
            )
        if augments is None and self.batch_size is not None:
            raise SetupError(
                "CachedTeacher: the cache's teacher saw mixed images, but the student's train_cfg or data preprocessor "
                'has no batch augmentations; put in those of the cache, or make a cache with this config.'
            )
