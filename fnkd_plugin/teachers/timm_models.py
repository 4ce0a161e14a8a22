"""Checks and errors for creating timm models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.readers import ImageSize
from fnkd_plugin.teachers.hub import cached_if_unreachable


def check_timm_model(owner: str, model: str, arguments: dict[str, Any]) -> PretrainedCfg:
    """The pretrained config of a timm model; raises for an unknown name or tag, with similar ones.

    Args:
        owner: Begins the errors.
        model: timm's name of the model, with or without the tag of its weights.
        arguments: Arguments for ``timm.create_model``.

    Raises:
        SetupError: If timm has no such model or tag, or the arguments contain ``checkpoint_path``.
    """
    name, _, tag = model.partition('.')
    if not timm.is_model(model):
        near = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        hint = f' Did you mean {", ".join(near)}?' if near else ''
        raise SetupError(f'{owner}: timm {timm.__version__} has no model {model!r}.{hint}')
    if 'checkpoint_path' in arguments:
        raise SetupError(f'{owner}: checkpoint_path is not supported; give checkpoint=FILE.')
    try:
        return timm.get_pretrained_cfg(model) or PretrainedCfg()  # users may register models without a config
    except RuntimeError as error:
        tags = [known.partition('.')[2] for known in timm.list_pretrained(f'{name}.*')]
        raise SetupError(
            f'{owner}: timm {timm.__version__} has no weights {tag!r} of {name}; it has {", ".join(tags) or "none"}.'
        ) from error


def check_classifies(owner: str, model: nn.Module) -> None:
    """Check that a timm model has a classifier; the error begins with ``owner``.

    Raises:
        SetupError: If not.
    """
    if getattr(model, 'num_classes', None) == 0:
        raise SetupError(
            f'{owner}: with these arguments the timm model has no classifier. Give num_classes=K; if you did, this '
            'architecture has none; choose another.'
        )


def checkpoint_classes(state: Mapping[str, Tensor], cfg: PretrainedCfg) -> int | None:
    """The number of classes in timm weights, from the shape of the classifier; None if it is not found."""
    classifier = cfg.classifier[0] if isinstance(cfg.classifier, (tuple, list)) else cfg.classifier
    weight = state.get(f'{classifier}.weight')
    return None if weight is None else len(weight)


def fixed_size(model: nn.Module, img_size: ImageSize | None = None) -> ImageSize | None:
    """The image size of a timm model that accepts only one; else None.

    Args:
        model: The model.
        img_size: The ``img_size`` argument of the model, if given; some models (LeViT) do not store it.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if not cfg.get('fixed_input_size'):
        return None
    return img_size or getattr(getattr(model, 'patch_embed', None), 'img_size', None) or cfg['input_size'][-2:]


@contextmanager
def timm_errors(owner: str, pretrained: bool) -> Iterator[None]:
    """Convert errors of ``timm.create_model`` (unknown arguments, failed downloads) to :class:`SetupError`.

    Args:
        owner: Begins the errors.
        pretrained: Whether weights are downloaded.
    """
    try:
        with cached_if_unreachable() if pretrained else nullcontext():
            yield
    except OSError as error:  # of a download
        reason = str(error).split('. ')[0].rstrip('.')
        raise SetupError(
            f'{owner}: its published weights cannot be downloaded ({reason}); give a file of weights with '
            'checkpoint=FILE.'
        ) from error
    except (TypeError, RuntimeError) as error:
        raise SetupError(f'{owner}: timm cannot create it: {error}') from error
