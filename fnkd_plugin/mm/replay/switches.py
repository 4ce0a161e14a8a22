"""Hooks that change the images in the middle of a run, which a cache of one pipeline cannot follow."""

from collections.abc import Iterable
from typing import Any

from mmpretrain.engine import SwitchRecipeHook

from fnkd_plugin.errors import SetupError


def refuse_switches(hooks: Iterable[Any], mixed: bool) -> None:
    """Refuse hooks that change the images in the middle of a run.

    Args:
        hooks: Of the run.
        mixed: Whether what mixes the images of a batch is replayed, too, and so must go on.

    Raises:
        SetupError: If a ``SwitchRecipeHook`` changes the pipeline or the batch augmentations.
    """
    for hook in hooks:
        if not isinstance(hook, SwitchRecipeHook):
            continue
        for epoch, recipe in hook.schedule.items():
            for key in ('train_pipeline', 'batch_augments'):
                # None takes batch augmentations out, and leaves a pipeline as it is.
                if recipe.get(key) is not None or (mixed and key == 'batch_augments' and key in recipe):
                    raise SetupError(
                        f'Replay: SwitchRecipeHook sets other {key} at epoch {epoch}, but the images are to be those '
                        'of one pipeline, as the teacher of a cache saw them; train the parts as runs of their own '
                        '(load_from), each with its cache, or teach with the live teacher.'
                    )
