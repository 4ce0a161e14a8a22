"""Making timm models, with errors that help."""

from difflib import get_close_matches
from typing import Any

import timm
from torch import nn

from fnkd_plugin.errors import SetupError


def check_timm_name(owner: str, model: str) -> None:
    """Refuse a name that timm does not know, and list near ones.

    Raises:
        SetupError: If timm has no such model.
    """
    if timm.is_model(model):
        return
    near = get_close_matches(model.split('.')[0], timm.list_models(), n=5, cutoff=0.5)
    hint = f' Did you mean {", ".join(near)}?' if near else ''
    raise SetupError(f'{owner}: timm {timm.__version__} has no model {model!r}.{hint}')


def create_timm_model(owner: str, model: str, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
    """``timm.create_model``; ``num_classes=None`` keeps the model's own.

    Raises:
        SetupError: If timm cannot make it (an unknown argument, or weights that cannot be fetched).
    """
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    try:
        return timm.create_model(model, **kwargs)
    except (TypeError, RuntimeError, OSError) as error:
        raise SetupError(f'{owner}: timm cannot make it: {error}') from error
