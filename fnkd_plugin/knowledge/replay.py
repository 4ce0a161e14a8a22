"""Training on the very images that a teacher has seen before."""

from typing import Any, NamedTuple

from fnkd_plugin.errors import SetupError


class Replay(NamedTuple):
    """Augmentations that come again: those of epoch e are those of view ``e % views`` under ``seed``.

    Attributes:
        seed: The seed of the augmentations; the rest of a run has its own.
        views: How many there are of each image.
    """

    seed: int
    views: int


def refuse_batch_augments(preprocessor: Any) -> None:
    """Refuse what mixes the images of a batch after they were loaded.

    Raises:
        SetupError: If the data preprocessor does.
    """
    augments = getattr(preprocessor, 'batch_augments', None)
    if augments is not None:
        kinds = [type(one).__name__ for one in getattr(augments, 'augments', [augments])]
        raise SetupError(
            f'CachedTeacher: {", ".join(kinds)} mixes images of a batch, which the teacher never saw mixed; take the '
            "batch augmentations out of the student's train_cfg or data preprocessor, or teach with the live teacher."
        )
