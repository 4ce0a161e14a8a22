"""Config files with overrides, and the plain config of a distilled one."""

import ast
import builtins
import copy
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import mmengine.config.config as mmengine_config
import mmpretrain
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmpretrain import registry
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.custom import find_folders

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.distill_head import DistillHead
from fnkd_plugin.taxonomy.names import ClassNames

# The keys that MMEngine reads; all others are variables of the file.
_RUNNER_KEYS = {*inspect.signature(Runner.__init__).parameters, 'runner_type', 'sync_bn'}


def config_file(path: str | Path) -> Path:
    """The path of a config file; ``mmpretrain::resnet/resnet50_8xb32_in1k.py`` is one inside MMPretrain."""
    package, _, shipped = str(path).partition('::')
    if package == 'mmpretrain' and shipped:
        return Path(mmpretrain.__file__).parent / '.mim' / 'configs' / shipped
    return Path(path)


def load_config(path: str | Path, options: Mapping[str, Any] | None = None, owner: str = '') -> Config:
    """Read a config file and merge ``--cfg-options``.

    An option that names a variable of the file, such as ``data_root``, is set right after the file's own assignment, so
    that everything computed from it changes, and nothing else. All others are merged as by MMEngine. In a distilled
    config ``model.*`` refers to the student, except ``model.student``, ``model.teacher``, ``model.pixels``,
    ``model.classes`` and the options of ``DistillHead`` under ``model.head``.

    Args:
        path: See :func:`config_file`. The file is Python code and is executed.
        options: Overrides by dotted key.
        owner: Prefix of error messages.

    Raises:
        SetupError: If the file does not exist, has no model, needs an environment variable that is not set, assigns
            a variable of ``options`` inside a block, or misspells a key of the Runner's.
    """
    file = config_file(path)
    if not file.is_file():
        raise SetupError(f'{owner}There is no config file {path}.')
    try:
        cfg = _read(file, options or {})
    except KeyError as error:
        raise SetupError(f'{owner}{path} cannot be read: {_reason(error)}') from error
    if not cfg.get('model'):
        raise SetupError(f'{owner}{path} has no model; is it a base of other configs?')
    merge_options(cfg, options or {})
    _check_keys(cfg, f'{owner}{path}')
    return cfg


def _check_keys(cfg: Config, owner: str) -> None:
    """Refuse variables that are a misspelt key of the Runner's, which MMEngine would ignore."""
    for key in cfg:
        near = [] if key in _RUNNER_KEYS else get_close_matches(key, _RUNNER_KEYS, n=1, cutoff=0.88)
        # train_dataloader2 and test_cfg_a are variables.
        if near and not re.match(rf'{near[0]}[_\d]|.*[_\d]{near[0]}$', key):
            raise SetupError(f'{owner}: unknown key {key!r}; did you mean {near[0]}? If it is a variable, rename it.')


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Merge options other than variables of a file in place; see :func:`load_config`."""
    distilled = is_distilled(cfg)
    cfg.merge_from_dict({_student_key(key) if distilled else key: value for key, value in options.items()})


def _read(file: Path, options: Mapping[str, Any]) -> Config:
    # For each name the last statement that binds it. Base files run before the files that inherit them.
    bindings: dict[str, tuple[str, int, ast.stmt]] = {}

    def record(tree: ast.Module, filename: str) -> None:
        for k, statement in enumerate(tree.body):
            bindings.update({name: (filename, k, statement) for name in _bound_names(statement)})

    with _each_file(record):
        cfg = Config.fromfile(file)
    values = {k: v for k, v in options.items() if k in bindings and k in cfg and not isinstance(v, dict)}
    if not values:
        return cfg
    for name in values:
        filename, _, statement = bindings[name]
        if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            raise SetupError(
                f'--cfg-options {name}: {filename} sets it inside the block of line {statement.lineno}, where it '
                'cannot be overridden; edit the file.'
            )

    def assign(tree: ast.Module, filename: str) -> None:
        places = [(bindings[name][1], name) for name in values if bindings[name][0] == filename]
        for k, name in sorted(places, reverse=True):
            tree.body[k + 1 : k + 1] = ast.parse(f'{name} = {values[name]!r}').body

    with _each_file(assign):
        return Config.fromfile(file)


def _bound_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Assign):
        nodes: list[ast.AST] = [node for target in statement.targets for node in ast.walk(target)]
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        nodes = [statement.target]
    elif isinstance(statement, (ast.If, ast.For, ast.While, ast.With, ast.Try)):
        nodes = list(ast.walk(statement))
    else:
        nodes = []
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@contextmanager
def _each_file(visit: Callable[[ast.Module, str], None]) -> Iterator[None]:
    """Call ``visit``, which may change it, with the syntax tree of each Python file that MMEngine runs for a config.

    MMEngine has no hook for this, but compiles every file of either config style once, in this one module.
    """

    def visiting(source: Any, filename: str, mode: str) -> Any:
        if mode == 'exec':
            visit(source, filename)
        return builtins.compile(source, filename, mode)

    mmengine_config.compile = visiting
    try:
        yield
    finally:
        del mmengine_config.compile


def _reason(error: KeyError) -> str:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get('__name__') == 'os':
        return f'the environment variable {error.args[0]} is not set.'
    # MMEngine's own errors are sentences.
    return error.args[0] if 'os.environ' in str(error) else f'KeyError: {error}'


def is_distilled_key(key: str) -> bool:
    """Whether a dotted key, such as ``model.teacher.checkpoint``, exists in distilled configs only."""
    model, part, option, *_ = [*key.split('.'), '', '']
    of_head = part == 'head' and option in inspect.signature(DistillHead).parameters
    return model == 'model' and (of_head or part in ('student', 'teacher', 'pixels', 'classes'))


def _student_key(key: str) -> str:
    model, _, rest = key.partition('.')
    if model != 'model' or is_distilled_key(key) or rest in ('', 'type'):
        return key
    return f'model.student.{rest}'


def type_name(node: Any) -> str:
    """The name of a config's ``type``, a string or a class, without its scope; '' if it has none."""
    kind = (node.get('type') or '') if isinstance(node, dict) else ''
    return kind.split('.')[-1] if isinstance(kind, str) else getattr(kind, '__name__', '')


def is_distilled(cfg: Config) -> bool:
    """Whether the config's model is a ``Distiller``."""
    return type_name(cfg.get('model')) == 'Distiller'


def plain_model(cfg: Config) -> ConfigDict:
    """A copy of the model config, of a distilled config the student's, with its data preprocessor."""
    model = copy.deepcopy(cfg.model.student if is_distilled(cfg) else cfg.model)
    shared = cfg.get('data_preprocessor')
    if is_distilled(cfg):
        shared = cfg.model.get('data_preprocessor', shared)
    if shared is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(shared))
    return model


def without_pretrained(model: ConfigDict) -> ConfigDict:
    """``model``, changed in place so that building it loads no pretrained weights."""
    for node in dicts_in(model):
        if node.get('pretrained'):
            node['pretrained'] = False if type_name(node).startswith(('Timm', 'TIMM')) else None
        if type_name(node) == 'TimmStudent':
            node.pop('checkpoint', None)
        if type_name(node) == 'TIMMBackbone':
            node.pop('checkpoint_path', None)
    return model


def plain_config(cfg: Config) -> Config:
    """The student's config for stock MMPretrain, to test its checkpoints without this plugin.

    A ``TimmStudent`` becomes the stock ``TimmClassifier``, which reads the same checkpoint. The plugin's hooks are
    removed, and so is its import, unless the config uses one of its data sets, models or hard-label losses.
    """
    plain = copy.deepcopy(cfg)
    model = plain._cfg_dict['model'] = without_pretrained(plain_model(cfg))
    if type_name(model) == 'TimmStudent':
        model['type'] = 'TimmClassifier'
        model['model_name'] = model.pop('model')
        model.pop('channels_last', None)
    hooks = plain.get('default_hooks') or {}
    for name in [n for n, hook in hooks.items() if _is_own(hook, registry.HOOKS)]:
        hooks.pop(name)
    if plain.get('custom_hooks'):
        plain.custom_hooks = [hook for hook in plain.custom_hooks if not _is_own(hook, registry.HOOKS)]
    imports = plain.get('custom_imports')
    if imports and not _uses_plugin(plain):
        imports['imports'] = [name for name in imports['imports'] if name.split('.')[0] != 'fnkd_plugin']
        if not imports['imports']:
            plain._cfg_dict.pop('custom_imports')
    return plain


def _is_own(node: Any, *registries: Registry) -> bool:
    """Whether the type of a config is this plugin's."""
    kinds = [r.module_dict.get(type_name(node)) for r in registries]
    return any(kind is not None and kind.__module__.startswith('fnkd_plugin') for kind in kinds)


def _uses_plugin(cfg: Config) -> bool:
    registries = (registry.MODELS, registry.DATASETS, registry.TRANSFORMS, registry.HOOKS)
    return any(
        _is_own(node, *registries) or str(node.get('ann_file', '')).startswith('tar://')
        for node in dicts_in(runner_part(cfg))
    )


def runner_part(cfg: Config) -> dict[str, Any]:
    """What MMEngine reads of a config, without the variables of its file, which may be unused."""
    return {key: value for key, value in cfg._cfg_dict.items() if key in _RUNNER_KEYS}


def dicts_in(node: Any) -> Iterator[dict]:
    """All dicts inside a config."""
    return (found for _, found in named_dicts(node))


def named_dicts(node: Any, name: str = '') -> Iterator[tuple[str, dict]]:
    """All dicts inside a part of a config with their dotted keys, which begin with ``name``."""
    children: list[tuple] = []
    if isinstance(node, dict):
        yield name, node
        children = list(node.items())
    elif isinstance(node, (list, tuple)):
        children = list(enumerate(node))
    for key, child in children:
        yield from named_dicts(child, f'{name}.{key}')


def dataset_classes(cfg: Config) -> ClassNames | None:
    """The classes of a config's training set, found without building it.

    Returns:
        The config's class names, the name of a data set whose ``METAINFO`` has them, or the folders of a
        ``CustomDataset``; None for other data sets.
    """
    for node in dicts_in((cfg.get('train_dataloader') or {}).get('dataset')):
        # In MMEngine's order. MMPretrain's data sets also take a text file.
        stated = node.get('classes') or (node.get('metainfo') or {}).get('classes')
        if stated:
            return stated if isinstance(stated, str) else list(stated)
        kind = dataset_type(node)
        if kind is not None and (getattr(kind, 'METAINFO', None) or {}).get('classes'):
            return kind.__name__
        prefix = node.get('data_prefix') or ''
        folder = Path(node.get('data_root') or '', prefix if isinstance(prefix, str) else prefix.get('img_path') or '')
        if kind is CustomDataset and not node.get('ann_file') and folder.is_dir():
            return find_folders(str(folder))[0]
    return None


def dataset_type(node: Mapping[str, Any]) -> type | None:
    """The class of a data set's config, for ``FlippedLabels`` that of the data set inside."""
    kind = node.get('of', node.get('type'))
    return registry.DATASETS.get(kind) if isinstance(kind, str) else kind
