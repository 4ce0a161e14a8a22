"""The ways by which a checkpoint gets in: each opens ``path`` and works in ``folder``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from mmengine.runner import Runner
from mmpretrain import get_model

from fnkd_plugin.analysis.subject import build_subject
from fnkd_plugin.mm.distill_config import add_run_hooks
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.mm.models import TimmStudent
from fnkd_plugin.mm.publish import publish
from fnkd_plugin.teachers import TimmTeacher
from fnkd_plugin.timm import FNKDTask
from fnkd_plugin.weights import read_state_dict
from tests.helpers import CLASSES, build, config, resnet
from tests.test_analysis.subjects import LOADER, evaluation_config
from tests.test_mm.test_hooks.runs import loader, run

MODEL = resnet()
VALIDATION = dict(
    val_dataloader=LOADER,
    val_cfg=dict(),
    val_evaluator=dict(type='Accuracy'),
    custom_hooks=[dict(type='EMAHook')],
    param_scheduler=dict(type='MultiStepLR', milestones=[1, 2], by_epoch=True, end=9),
    default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='auto', max_keep_ckpts=2)),
)
"""A run of which a checkpoint holds all that MMEngine stores."""


def train(folder: Path, **options: Any) -> Runner:
    """Train for an epoch of one batch; ``max_epochs`` is another number of them."""
    epochs = dict(by_epoch=True, max_epochs=options.pop('max_epochs', 1))
    dataset = dict(type='RandomImages', count=4, pipeline=[dict(type='PackInputs')])
    return run(MODEL, folder, train_dataloader=loader(dataset), train_cfg=epochs, **VALIDATION, **options)


def _test(path: Path, folder: Path) -> None:
    cfg = config(
        MODEL,
        folder,
        load_from=str(path),
        test_dataloader=LOADER,
        test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'),
    )
    add_run_hooks(cfg)
    Runner.from_cfg(cfg).test()


def _init(prefix: dict, path: Path) -> None:
    init_cfg = dict(type='Pretrained', checkpoint=str(path), **prefix)
    if prefix:
        build({**MODEL, 'backbone': {**MODEL['backbone'], 'init_cfg': init_cfg}})
    else:
        build({**MODEL, 'init_cfg': init_cfg})


def _task(path: Path, folder: Path) -> None:
    FNKDTask(timm.create_model('test_resnet', num_classes=CLASSES), 'test_resnet', teacher_pretrained_path=str(path))


TIMM: dict[str, Callable[[Path, Path], Any]] = {
    'timm teacher': lambda path, folder: TimmTeacher('test_resnet', checkpoint=path),
    'timm student': lambda path, folder: TimmStudent('test_resnet', num_classes=CLASSES, checkpoint=path),
    'task': _task,
    'read_state_dict': lambda path, folder: read_state_dict(path),
}
"""For timm's weights of ``test_resnet``."""

DOORS: dict[str, Callable[[Path, Path], Any]] = {
    **TIMM,
    'mmpretrain teacher': lambda path, folder: MMPretrainTeacher(config(MODEL, folder), checkpoint=path),
    'load_from': lambda path, folder: train(folder, load_from=str(path)),
    'resume': lambda path, folder: train(folder, load_from=str(path), resume=True, max_epochs=2),
    'test': _test,
    'init_cfg': lambda path, folder: _init({}, path),
    'init_cfg of the backbone': lambda path, folder: _init(dict(prefix='backbone.'), path),
    'zoo': lambda path, folder: get_model(config(MODEL, folder), pretrained=str(path)),
    'analyze': lambda path, folder: build_subject(evaluation_config(folder, MODEL), path, 'val'),
    'publish': lambda path, folder: publish(path, folder / 'out'),
}
