"""Making timm models, with errors that help."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.readers import ImageSize


def check_timm_model(owner: str, model: str, arguments: dict[str, Any]) -> PretrainedCfg:
    """What timm knows of a model; a name or tag that it does not know is refused, and near ones are listed.

    Args:
        owner: Begins the errors.
        model: timm's name of it, with or without the tag of its weights.
        arguments: Those meant for ``timm.create_model``.

    Raises:
        SetupError: If timm has no such model, or the arguments bypass ours.
    """
    name, _, tag = model.partition('.')
    if not timm.is_model(model):
        near = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        hint = f' Did you mean {", ".join(near)}?' if near else ''
        raise SetupError(f'{owner}: timm {timm.__version__} has no model {model!r}.{hint}')
    if 'checkpoint_path' in arguments:
        raise SetupError(f'{owner}: checkpoint_path is an argument of timm alone; give checkpoint=FILE.')
    try:
        return timm.get_pretrained_cfg(model) or PretrainedCfg()  # none if registered without, as users may
    except RuntimeError as error:
        tags = [known.partition('.')[2] for known in timm.list_pretrained(f'{name}.*')]
        raise SetupError(
            f'{owner}: timm {timm.__version__} has no weights {tag!r} of {name}; it has {", ".join(tags) or "none"}.'
        ) from error


def check_classifies(owner: str, model: nn.Module) -> None:
    """Refuse a timm model that makes features alone; the error begins with ``owner``.

    Raises:
        SetupError: If the model has no classifier.
    """
    if getattr(model, 'num_classes', None) == 0:
        raise SetupError(
            f'{owner}: made so, this model of timm has no classifier. Give num_classes=K; if that was given, it can '
            'have none, and another model is needed.'
        )


def checkpoint_classes(state: Mapping[str, Tensor], cfg: PretrainedCfg) -> int | None:
    """K of a checkpoint of timm's weights, by its classifier's; None if that is not found."""
    classifier = cfg.classifier[0] if isinstance(cfg.classifier, (tuple, list)) else cfg.classifier
    weight = state.get(f'{classifier}.weight')
    return None if weight is None else len(weight)


def fixed_size(model: nn.Module, img_size: ImageSize | None = None) -> ImageSize | None:
    """The one size of images that a timm model takes, as it was built; None if it takes others.

    Args:
        model: The model.
        img_size: The ``img_size`` that it was built with, if one was given; some (LeViT) do not keep it.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if not cfg.get('fixed_input_size'):
        return None
    return img_size or getattr(getattr(model, 'patch_embed', None), 'img_size', None) or cfg['input_size'][-2:]


@contextmanager
def timm_errors(owner: str) -> Iterator[None]:
    """Around ``timm.create_model``: an unknown argument or weights that cannot be fetched as a :class:`SetupError`."""
    try:
        yield
    except (TypeError, RuntimeError, OSError) as error:
        raise SetupError(f'{owner}: timm cannot make it: {error}') from error
