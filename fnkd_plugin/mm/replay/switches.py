"""Checks for hooks that change the images during a run, for which a cache has no predictions."""

from collections.abc import Iterable
from typing import Any

from mmpretrain.engine import SwitchRecipeHook

from fnkd_plugin.errors import SetupError


def refuse_switches(hooks: Iterable[Any], mixed: bool) -> None:
    """Refuse hooks that change the images during a run.

    Args:
        hooks: The hooks of the run.
        mixed: Whether batch augmentations are replayed, too, so that they must not change.

    Raises:
        SetupError: If a ``SwitchRecipeHook`` changes the pipeline or the batch augmentations.
    """
    for hook in hooks:
        if not isinstance(hook, SwitchRecipeHook):
            continue
        for epoch, recipe in hook.schedule.items():
            for key in ('train_pipeline', 'batch_augments'):
                # None removes batch augmentations, but keeps the pipeline.
                if recipe.get(key) is not None or (mixed and key == 'batch_augments' and key in recipe):
                    raise SetupError(
                        f'Replay: SwitchRecipeHook sets other {key} at epoch {epoch}, but a cache has predictions for '
                        'one pipeline; train the parts as separate runs (load_from), each with its cache, or use the '
                        'live teacher.'
                    )
