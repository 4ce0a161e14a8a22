"""Hooks that change the images in the middle of a run, which a cache of one pipeline cannot follow."""

from collections.abc import Iterable
from typing import Any

from mmpretrain.engine import SwitchRecipeHook

from fnkd_plugin.errors import SetupError


def refuse_switches(hooks: Iterable[Any]) -> None:
    """Refuse hooks that change the images in the middle of a run.

    Raises:
        SetupError: If a ``SwitchRecipeHook`` changes the pipeline or turns batch augmentations on.
    """
    for hook in hooks:
        if not isinstance(hook, SwitchRecipeHook):
            continue
        for epoch, recipe in hook.schedule.items():
            for key in ('train_pipeline', 'batch_augments'):
                if recipe.get(key) is not None:
                    raise SetupError(
                        f'CachedTeacher: SwitchRecipeHook sets other {key} at epoch {epoch}, but the teacher saw the '
                        'images of one pipeline; train the parts as runs of their own (load_from), each with its '
                        'cache, or teach with the live teacher.'
                    )
