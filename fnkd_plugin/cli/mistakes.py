"""Errors of a config that cannot be built, as one sentence: which name is wrong, where it stands, and similar names."""

import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry, build_from_cfg
from torch.utils.data import DataLoader

from fnkd_cli.arguments import did_you_mean
from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.mm.config import named_dicts, runner_part, type_name


@contextmanager
def explained(cfg: Config) -> Iterator[None]:
    """Build and use ``cfg``; an error that a misspelt type or option causes names it.

    Raises:
        SetupError: If a type or option of the config is unknown, or images of one batch differ in size.
    """
    try:
        yield
    except SetupError:
        raise
    except (KeyError, TypeError, RuntimeError) as error:
        sentence = _of_sizes(error) if isinstance(error, RuntimeError) else _of_names(error, cfg)
        if sentence is None:
            raise
        raise SetupError(sentence) from error


def _of_sizes(error: RuntimeError) -> str | None:
    sizes = re.search(r'stack expects each tensor to be equal size, but got (\[.*?\]) .*?(\[.*?\])', str(error))
    if sizes is None:
        return None
    return (
        f'images of a batch differ in size ({sizes[1]} and {sizes[2]}); their pipeline needs a step that makes them '
        'equal, such as dict(type="Resize", scale=(224, 224)).'
    )


def _of_names(error: KeyError | TypeError, cfg: Config) -> str | None:
    """What is wrong with a type or an option; None if the error is of something else, such as a model's code."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    built: dict[str, Any] = {}
    for frame in frames:
        if frame.f_code is build_from_cfg.__code__:
            built = frame.f_locals
    option = re.match(r"(\w+).*unexpected keyword argument '(\w+)'", str(error))
    if option and option[2] in built.get('args', ()) and option[2] not in _options(built['obj_cls']):
        return _unknown_option(cfg, built['obj_cls'], option[2])
    # MMEngine asks some types for their signature, also those that do not exist.
    own = [name for frame in frames if (name := frame.f_globals.get('__name__', '')) != 'inspect']
    if not own or not own[-1].startswith('mmengine.'):
        return None
    if option:
        stated = any(option[2] in node for _, node in _nodes(cfg))
        return _unknown_option(cfg, _types().get(option[1]), option[2]) if stated else None
    if isinstance(error, KeyError) and built.get('obj_cls', error) is None:
        return _unknown_type(cfg, str(built['obj_type']), _names(built['registry']), built['registry'].name)
    types = _types()
    elsewhere = {key: value for key, value in runner_part(cfg).items() if key != 'model'}
    unknown = [name for _, node in named_dicts(elsewhere) if (name := type_name(node)) and name not in types]
    if unknown:
        return _unknown_type(cfg, unknown[0], types, 'type')
    if own[-1].startswith(('mmengine.registry.', 'mmengine.runner.')):
        return f'the config cannot be built: {str(error.args[0]).split(". ")[0]}'
    return None


def _unknown_type(cfg: Config, name: str, known: dict[str, Any], kind: str) -> str:
    places = [f'{key}.type' for key, node in _nodes(cfg) if type_name(node) == name.split('.')[-1]]
    return f'{_where(places)}: unknown {kind} {name!r}{did_you_mean(name.split(".")[-1], known)}'


def _unknown_option(cfg: Config, kind: Any, option: str) -> str:
    owner = getattr(kind, '__name__', 'what is built from it')
    found = [(f'{key}.{option}', type_name(node)) for key, node in _nodes(cfg) if option in node]
    places = [place for place, name in found if name == owner] or [place for place, _ in found]
    return f'{_where(places)}: {owner} has no option {option!r}{did_you_mean(option, _options(kind))}'


def _options(kind: Any) -> set[str]:
    """The names of the arguments of a class and its bases, or of a function."""
    bases = inspect.getmro(kind) if inspect.isclass(kind) else [kind] if kind else []
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = [p for base in bases for p in inspect.signature(base).parameters.values()]
    return {p.name for p in parameters if p.kind not in several}


def _nodes(cfg: Config) -> Iterator[tuple[str, dict]]:
    return ((key.lstrip('.'), node) for key, node in named_dicts(runner_part(cfg)))


def _where(places: list[str]) -> str:
    return first_few(places, 2) if places else 'the config'


def _types() -> dict[str, Any]:
    """All that can be built, by name."""
    registries = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    found = {name: kind for registry in registries for name, kind in _names(registry).items()}
    return {**found, 'DataLoader': DataLoader}


def _names(registry: Registry) -> dict[str, Any]:
    """What a registry, those that it falls back to, and those of its scopes can build, by name."""
    root = registry
    while root.parent is not None:
        root = root.parent
    found = dict(root.module_dict)
    for child in root.children.values():
        found.update(child.module_dict)
    return found
