"""Converts the weights of timm models inside MMPretrain's classifiers to timm's own keys."""

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers.timm_models import check_timm_model, timm_errors
from fnkd_plugin.weights import load_weights

_CLASSIFIER = 'model.'
_BACKBONE, _HEAD = 'backbone.timm_model.', 'head.fc.'


def to_timm_keys(state: Mapping[str, Tensor], source: str | Path, model: str | None = None) -> dict[str, Tensor]:
    """``state`` under timm's own keys.

    A ``TimmStudent`` and a ``TimmClassifier`` have them already, up to a prefix. A ``TIMMBackbone`` with average
    pooling and a ``LinearClsHead`` is converted if it computes the same as timm's whole model, which it does not if
    timm has, for example, a norm between pooling and classifier.

    Args:
        state: The weights of an MMPretrain classifier.
        source: Their file, for errors.
        model: timm's name of the model, needed for a ``TIMMBackbone``; if given, the weights must fit it.

    Raises:
        SetupError: If the keys are those of another backbone than a ``TIMMBackbone``, or do not fit ``model``. Without
            ``model``, keys outside a backbone are not compared with timm's.
    """
    state = {key: value for key, value in state.items() if not key.startswith('data_preprocessor.')}
    if all(key.startswith(_CLASSIFIER) for key in state):
        state = {key.removeprefix(_CLASSIFIER): value for key, value in state.items()}
    joined = any(key.startswith('backbone.') for key in state)
    if joined:
        _check_backbone(state, source, model)
    if model is None:
        return state
    classifier = _classifier_name(model, source)
    if joined:
        head = {f'{classifier}.{part}': state[_HEAD + part] for part in ('weight', 'bias') if _HEAD + part in state}
        state = {key.removeprefix(_BACKBONE): v for key, v in state.items() if key.startswith(_BACKBONE)} | head
    if f'{classifier}.weight' not in state:
        raise SetupError(f'{source} is not a {model} with a classifier: it has no {classifier}.weight.')
    whole = _load(model, state, len(state[f'{classifier}.weight']), source)
    if joined:
        _check_same(whole, model, classifier, state, source)
    return state


def _check_backbone(state: Mapping[str, Tensor], source: str | Path, model: str | None) -> None:
    foreign = [key for key in state if not key.startswith((_BACKBONE, _HEAD))]
    if foreign or f'{_HEAD}weight' not in state:
        what = foreign[0] if foreign else 'a model without LinearClsHead'
        raise SetupError(
            f'{source}: timm has no key for {what}; its keys fit a TimmStudent, a TimmClassifier, and a TIMMBackbone '
            'with LinearClsHead. Publish it without --timm.'
        )
    if model is None:
        raise SetupError(f'{source} does not name the timm model of its TIMMBackbone; add --timm-model NAME.')


def _classifier_name(model: str, source: str | Path) -> str:
    names = check_timm_model(str(source), model, {}).classifier
    if not isinstance(names, str):
        raise SetupError(f'{source}: {model} has no single classifier in timm ({names}). Publish it without --timm.')
    return names


def _load(model: str, state: Mapping[str, Tensor], classes: int, source: str | Path) -> torch.nn.Module:
    with timm_errors(str(source)):
        made = timm.create_model(model, num_classes=classes).eval()
    load_weights(made, state, f'{model} and {source}')
    return made


@torch.no_grad()
def _check_same(
    whole: torch.nn.Module, model: str, classifier: str, state: Mapping[str, Tensor], source: str | Path
) -> None:
    """Refuse models whose own head does more than average pooling and the classifier."""
    bare = timm.create_model(model)
    bare.reset_classifier(0, '')
    bare.load_state_dict(
        {key: value for key, value in state.items() if not key.startswith(f'{classifier}.')}, strict=False
    )
    size = check_timm_model(str(source), model, {}).input_size
    images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    features = bare.eval()(images)
    weight = state[f'{classifier}.weight']
    if features.dim() == 4 and features.shape[1] == weight.shape[1]:
        logits = F.linear(features.mean((2, 3)), weight, state.get(f'{classifier}.bias'))
        if torch.allclose(whole(images), logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max())):
            return
    raise SetupError(
        f'{source}: {model} in timm is not what TIMMBackbone, average pooling and LinearClsHead compute. Publish it '
        'without --timm.'
    )
