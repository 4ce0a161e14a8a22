"""Adds distillation, label smoothing and the plugin's hooks to a config."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmpretrain.models import ClsHead
from mmpretrain.registry import MODELS

from fnkd_plugin import presets
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import dataset_classes, dicts_in, is_distilled, type_name
from fnkd_plugin.mm.tasks import other_task
from fnkd_plugin.taxonomy.taxonomy import groups_of_classes


def _presets(*types: str) -> dict[str, dict[str, Any]]:
    named = vars(presets).items()
    return {name: preset for name, preset in named if isinstance(preset, dict) and preset.get('type') in types}


METHODS = _presets('DistillHead')
"""The methods of :func:`distill`: the config of a ``DistillHead`` by name."""

SMOOTHINGS = _presets('LSRLoss', 'ALSRLoss')
"""The methods of :func:`smooth_labels`: the config of a hard-label loss by name."""

_RUN_HOOKS = {
    'reproducible': 'ReproducibleHook',
    'safe_checkpoint': 'SafeCheckpointHook',
    'check_classes': 'CheckClassesHook',
    'check_weights': 'CheckWeightsHook',
    'summary': 'SummaryHook',
}


def distill(
    cfg: Config, /, teacher: str | dict | Sequence[str | dict] | None = None, method: str = 'fnkd', **options: Any
) -> Config:
    """A new config that trains the model of ``cfg`` with a teacher.

    Its model is ``dict(type='Distiller', student=..., teacher=..., head=...)``. :func:`add_run_hooks` adds the hooks,
    so that ``Runner.from_cfg`` trains as ``tools/train.py`` does.

    Args:
        cfg: A plain config of either style, or a distilled one, whose method is replaced. It is not changed.
        teacher: A teacher's config or its name, see :func:`teacher_config`; several make an ``EnsembleTeacher``. None
            for a distilled ``cfg``.
        method: A name of :data:`METHODS`.
        **options: Override the method's options: those of its soft loss (``temperature=2``, ``loss_weight=9``) and of
            ``DistillHead`` (``hard_weight``, ``warmup``).

    Raises:
        SetupError: If ``cfg`` has no model, neither or both of ``cfg`` and ``teacher`` give a teacher, or a method or
            option is unknown.
    """
    if not cfg.get('model'):
        raise SetupError('distill: the config has no model.')
    if is_distilled(cfg) and teacher is not None:
        raise SetupError(
            'distill: the config has a teacher already; leave teacher out to change the method alone, override it '
            'with --cfg-options model.teacher.checkpoint=FILE, or give the plain config of the student.'
        )
    head = _preset('distill: method', METHODS, method)
    _set_options(f'distill: {method}', [head['soft_loss'], head], options)
    mixed = copy.deepcopy(cfg)
    if is_distilled(cfg):
        mixed.model.head = head
    else:
        mixed.model = dict(type='Distiller', student=mixed.model, teacher=_teacher(teacher), head=head)
    _import_plugin(mixed)
    add_run_hooks(mixed)
    return mixed


def smooth_labels(cfg: Config, /, method: str = 'lsr', **options: Any) -> Config:
    """A new config whose model (of a distilled config, the student) trains with label smoothing.

    Args:
        cfg: A config, plain or distilled. It is not changed.
        method: ``'lsr'`` or ``'alsr'``. It replaces the model's own loss and all its options.
        **options: Those of :class:`~fnkd_plugin.losses.LSRLoss` or :class:`~fnkd_plugin.losses.ALSRLoss`. The latter
            needs ``groups``; a rule alone, such as ``{'groups.rule': 'last_word'}``, is applied to the classes of the
            training set.

    Raises:
        SetupError: If ``cfg`` has no single-label classifier, or a method or option is unknown or missing.
    """
    if not cfg.get('model'):
        raise SetupError('label smoothing: the config has no model.')
    loss = _preset('label smoothing', SMOOTHINGS, method)
    nested = Config()
    nested.merge_from_dict(options)
    _set_options(f'label smoothing: {method}', [loss], nested.to_dict())
    mixed = copy.deepcopy(cfg)
    _owner_of_loss(mixed.model.student if is_distilled(mixed) else mixed.model)['loss'] = loss
    name_groups(mixed)
    _import_plugin(mixed)
    return mixed


def name_groups(cfg: Config) -> None:
    """Apply rules in ``ALSRLoss(groups=...)`` without classes, such as ``'cub'``, to the training set's classes."""
    losses = [node for node in dicts_in(cfg.model) if type_name(node) == 'ALSRLoss']
    classes = dataset_classes(cfg) if losses else None
    if classes is not None:
        for loss in losses:
            loss['groups'] = groups_of_classes(loss.get('groups'), classes)


def add_run_hooks(cfg: Config) -> None:
    """Add the hooks for checks, summary, exact resumption and plain checkpoints, unless the config sets them.

    ``None`` in ``default_hooks`` turns one off.
    """
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    known = {type_name(hook) for hook in [*hooks.values(), *(cfg.get('custom_hooks') or ())]}
    for name, kind in _RUN_HOOKS.items():
        if kind not in known:
            hooks.setdefault(name, dict(type=kind))
        if hooks.get(name, kind) is None:
            hooks.pop(name)  # MMEngine takes None for its own hooks only


def teacher_config(name: str, checkpoint: str | None = None) -> dict[str, Any]:
    """The config of a teacher by its name.

    Args:
        name: ``timm:MODEL``, ``hf:FOLDER`` or ``hf:ID`` of Hugging Face, ``cached:FOLDER``, a config file, or a name of
            MMPretrain's model zoo. A config file is Python code and is executed.
        checkpoint: Its weights; None for the published ones, if the name has some.

    Raises:
        SetupError: If ``checkpoint`` is given for ``hf:`` or ``cached:``.
    """
    kind, _, model = name.partition(':')
    weights = {} if checkpoint is None else dict(checkpoint=checkpoint)
    if kind == 'timm':
        return dict(type='TimmTeacher', model=model, **(weights or dict(pretrained=True)))
    if kind in ('hf', 'cached'):
        if checkpoint is not None:
            raise SetupError(f'{name}: needs no checkpoint ({checkpoint}); leave it out.')
        return dict(type='HuggingFaceTeacher' if kind == 'hf' else 'CachedTeacher', path=model)
    return dict(type='MMPretrainTeacher', config=name, **weights)


def _teacher(teacher: str | dict | Sequence[str | dict] | None) -> dict[str, Any]:
    several: list[Any] = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    wrong = [one for one in several if not isinstance(one, (str, dict))]
    if wrong:
        raise SetupError(
            f'distill: give a teacher by name or by config, not a {type(wrong[0]).__name__}; built teachers '
            'go into Distiller(student, teacher, head).'
        )
    teachers = [teacher_config(one) if isinstance(one, str) else copy.deepcopy(one) for one in several]
    if not teachers:
        raise SetupError("distill: give at least one teacher, such as 'timm:resnet50'.")
    return teachers[0] if len(teachers) == 1 else dict(type='EnsembleTeacher', teachers=teachers)


def _preset(owner: str, known: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in known:
        raise SetupError(f'{owner} {name!r} is unknown; choose from {", ".join(sorted(known))}.')
    return copy.deepcopy(known[name])


def _set_options(owner: str, targets: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Set each option in the first of ``targets`` (configs of modules) whose class has it."""
    parameters = [dict(inspect.signature(MODELS.get(target['type'])).parameters) for target in targets]
    takes = {name: target for target, own in reversed(list(zip(targets, parameters, strict=True))) for name in own}
    takes.pop('soft_loss', None)
    unknown = [name for name in options if name not in takes]
    if unknown:
        raise SetupError(f'{owner} has no option {", ".join(unknown)}; it has {", ".join(sorted(takes))}.')
    for name, value in options.items():
        takes[name][name] = value
    for target, own in zip(targets, parameters, strict=True):
        for name, parameter in own.items():
            if parameter.default is parameter.empty and name not in target:
                raise SetupError(f'{owner} needs the option {name}; see {target["type"]}.')


def _owner_of_loss(model: ConfigDict) -> ConfigDict:
    kind = _class_of(model)
    if 'loss' in inspect.signature(kind).parameters:  # models without a head: timm's, Hugging Face's
        return model
    head = model.get('head')
    if head:
        kind = _class_of(head)
    task = other_task(kind)
    if task is None and issubclass(kind, ClsHead):
        return head
    raise SetupError(
        f'label smoothing: the model is {task or "not a classifier"} ({kind.__name__}); labels are smoothed over the '
        'classes of a single-label classifier. Give a config with such a head.'
    )


def _class_of(node: dict[str, Any]) -> Any:
    kind = node.get('type')
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise SetupError(f'label smoothing: MMPretrain has no model {kind}.')
    return found


def _import_plugin(cfg: Config) -> None:
    """Add this plugin to ``custom_imports``, so that a dumped config imports it."""
    stated = cfg.get('custom_imports') or {}
    names = stated.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'fnkd_plugin' not in names:
        failing = stated.get('allow_failed_imports', False)
        cfg.custom_imports = dict(imports=['fnkd_plugin', *names], allow_failed_imports=failing)
