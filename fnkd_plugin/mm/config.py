"""Distilled configs and the plain ones inside them."""

import copy
import inspect
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmpretrain
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmpretrain import registry

from fnkd_plugin.errors import SetupError
from fnkd_plugin.taxonomy.names import ClassNames

_OWN_HOOKS = (
    'ChannelsLastHook',
    'CheckClassesHook',
    'SafeCheckpointHook',
    'ReproducibleHook',
    'EvaluateTeacherHook',
    'SavePredictionsHook',
)
# What MMEngine reads of a config; all else is the file's own.
_RUNNER_KEYS = {*inspect.signature(Runner.__init__).parameters, 'runner_type', 'sync_bn'}


def config_file(path: str | Path) -> Path:
    """The file that is meant; ``mmpretrain::resnet/resnet50_8xb32_in1k.py`` is one that MMPretrain ships."""
    package, _, shipped = str(path).partition('::')
    if package == 'mmpretrain' and shipped:
        return Path(mmpretrain.__file__).parent / '.mim' / 'configs' / shipped
    return Path(path)


def load_config(path: str | Path, owner: str = '') -> Config:
    """Read a config file, or one that MMPretrain ships: ``mmpretrain::resnet/resnet50_8xb32_in1k.py``.

    Args:
        path: The file; it is Python and runs.
        owner: Begins the errors.

    Raises:
        SetupError: If there is none, it has no model, or it needs an environment variable that is not set.
    """
    file = config_file(path)
    if not file.is_file():
        raise SetupError(f'{owner}There is no config file {path}.')
    try:
        cfg = Config.fromfile(file)
    except KeyError as error:
        raise SetupError(f'{owner}{path} cannot be read: {_reason(error)}') from error
    if not cfg.get('model'):
        raise SetupError(f'{owner}{path} has no model; is it a config of its own, or a base of others?')
    return cfg


def _reason(error: KeyError) -> str:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get('__name__') == 'os':
        return f'the environment variable {error.args[0]} is not set.'
    # MMEngine's own errors are sentences.
    return error.args[0] if 'os.environ' in str(error) else f'KeyError: {error}'


def is_distilled(cfg: Config) -> bool:
    """Whether the config's model is a ``Distiller``."""
    kind = (cfg.get('model') or {}).get('type')
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).split('.')[-1] == 'Distiller'


def plain_model(cfg: Config) -> ConfigDict:
    """A copy of the student's model config (the model's own for a plain config), with its data preprocessor."""
    model = copy.deepcopy(cfg.model.student if is_distilled(cfg) else cfg.model)
    shared = cfg.get('data_preprocessor')
    if is_distilled(cfg):
        shared = cfg.model.get('data_preprocessor', shared)
    if shared is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(shared))
    return model


def without_pretrained(model: ConfigDict) -> ConfigDict:
    """``model`` without weights that building it would fetch or read: a checkpoint will replace them."""
    for node in dicts_in(model):
        if node.get('pretrained'):
            node['pretrained'] = False if _type_name(node).startswith(('Timm', 'TIMM')) else None
        if _type_name(node) == 'TimmStudent':
            node.pop('checkpoint', None)
        if _type_name(node) == 'TIMMBackbone':
            node.pop('checkpoint_path', None)
    return model


def plain_config(cfg: Config) -> Config:
    """The student's config for MMPretrain alone, to test its checkpoints where this plugin is not installed.

    A ``TimmStudent`` becomes the stock ``TimmClassifier``, which reads the same checkpoint. Our hooks go; the
    import of this plugin goes too, unless the config uses one of its data sets or hard-label losses.
    """
    plain = copy.deepcopy(cfg)
    plain._cfg_dict['model'] = _stock_model(without_pretrained(plain_model(cfg)))
    hooks = plain.get('default_hooks') or {}
    for name in [n for n, hook in hooks.items() if hook and _type_name(hook) in _OWN_HOOKS]:
        hooks.pop(name)
    if plain.get('custom_hooks'):
        plain.custom_hooks = [hook for hook in plain.custom_hooks if _type_name(hook) not in _OWN_HOOKS]
    imports = plain.get('custom_imports')
    if imports and not _uses_plugin(plain):
        imports['imports'] = [name for name in imports['imports'] if name.split('.')[0] != 'fnkd_plugin']
        if not imports['imports']:
            plain._cfg_dict.pop('custom_imports')
    return plain


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """``--cfg-options`` in place; ``model.*`` written for the plain model reaches the student of a distilled one.

    ``model.student``, ``model.teacher``, ``model.pixels``, ``model.classes`` and the options of ``DistillHead`` under
    ``model.head`` mean the distilled model's own. A variable of the file, such as ``data_root``, is replaced
    wherever the file used it, which MMEngine alone does not do.
    """
    variables = {
        cfg[key]: value
        for key, value in options.items()
        if key not in _RUNNER_KEYS and isinstance(value, str) and isinstance(cfg.get(key), str) and cfg[key].strip('/')
    }
    # Longer ones first: one may be a folder inside another.
    _replaced(cfg._cfg_dict, sorted(variables.items(), key=lambda pair: -len(pair[0].rstrip('/'))))
    if is_distilled(cfg):
        options = {_student_key(key): value for key, value in options.items()}
    cfg.merge_from_dict(options)


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``--cfg-options`` for a plain config that is to be distilled: its own, and those of what is mixed into it."""
    mixed_in = {key: value for key, value in options.items() if _is_mixed_in(key)}
    return {key: value for key, value in options.items() if key not in mixed_in}, mixed_in


def _is_mixed_in(key: str) -> bool:
    model, part, option, *_ = [*key.split('.'), '', '']
    # By name, since distillers stand above this module.
    of_head = inspect.signature(registry.MODELS.get('DistillHead')).parameters
    distilled = part in ('student', 'teacher', 'pixels', 'classes') or (part == 'head' and option in of_head)
    return model == 'model' and distilled


def _replaced(node: Any, pairs: list[tuple[str, str]]) -> Any:
    """``node`` with each (old, new) of ``pairs``, and paths below the old, replaced; dicts and lists in place."""
    if isinstance(node, dict):
        # dict's own items: those of ConfigDict import the classes that pure-Python configs name.
        for key, child in list(dict.items(node)):
            node[key] = _replaced(child, pairs)
    elif isinstance(node, list):
        node[:] = [_replaced(child, pairs) for child in node]
    elif isinstance(node, tuple):
        return tuple(_replaced(child, pairs) for child in node)
    elif isinstance(node, str):
        for old, new in pairs:
            folder = old.rstrip('/')
            if node in (old, folder):
                return new
            if node.startswith(folder + '/'):
                return new.rstrip('/') + node[len(folder) :]
    return node


def _student_key(key: str) -> str:
    model, _, rest = key.partition('.')
    if model != 'model' or _is_mixed_in(key) or rest in ('', 'type'):
        return key
    return f'model.student.{rest}'


def _stock_model(model: ConfigDict) -> ConfigDict:
    if _type_name(model) == 'TimmStudent':
        model['type'] = 'TimmClassifier'
        model['model_name'] = model.pop('model')
        model.pop('channels_last', None)
    return model


def _type_name(node: Any) -> str:
    kind = node.get('type', '') if isinstance(node, dict) else ''
    return kind.split('.')[-1] if isinstance(kind, str) else getattr(kind, '__name__', '')


def dicts_in(node: Any) -> Iterator[dict]:
    """All dicts inside a config."""
    return (found for _, found in named_dicts(node))


def named_dicts(node: Any, name: str = '') -> Iterator[tuple[str, dict]]:
    """All dicts inside a part of a config, called ``name``, and what ``--cfg-options`` call them."""
    children: list[tuple] = []
    if isinstance(node, dict):
        yield name, node
        children = list(node.items())
    elif isinstance(node, (list, tuple)):
        children = list(enumerate(node))
    for key, child in children:
        yield from named_dicts(child, f'{name}.{key}')


def _uses_plugin(cfg: Config) -> bool:
    registries = (registry.MODELS, registry.DATASETS, registry.TRANSFORMS, registry.HOOKS)
    # A file's own variables may hold what this model does not use.
    read = {key: value for key, value in cfg._cfg_dict.items() if key in _RUNNER_KEYS}
    for node in dicts_in(read):
        kinds = [r.module_dict.get(_type_name(node)) for r in registries]
        if any(kind is not None and kind.__module__.startswith('fnkd_plugin') for kind in kinds):
            return True
    return any(str(p.get('ann_file', '')).startswith('tar://') for p in dicts_in(read))


def dataset_classes(cfg: Config) -> ClassNames | None:
    """The classes of a config's training set, if they are known before it is built.

    Returns:
        The names that the config gives, or else the name of the data set whose ``METAINFO`` holds them.
    """
    for node in dicts_in((cfg.get('train_dataloader') or {}).get('dataset')):
        # MMEngine's order; the argument of MMPretrain's data sets may be a text file.
        stated = node.get('classes') or (node.get('metainfo') or {}).get('classes')
        if stated:
            return stated if isinstance(stated, str) else list(stated)
        kind = node.get('type')
        kind = registry.DATASETS.get(kind) if isinstance(kind, str) else kind
        if (getattr(kind, 'METAINFO', None) or {}).get('classes'):
            return kind.__name__  # type: ignore[union-attr]
    return None
