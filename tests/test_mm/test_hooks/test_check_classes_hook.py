"""Data whose classes do not fit the model, the groups or the teacher are refused before the first step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from fnkd_plugin import distill
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.hooks import check_classes_hook
from fnkd_plugin.mm.hooks.check_classes_hook import class_count
from fnkd_plugin.mm.training import build_runner
from tests.helpers import (
    CLASSES,
    SIZE,
    RandomImages,
    build,
    config,
    distilled,
    resnet,
    timm_student,
    timm_teacher,
)

pytestmark = pytest.mark.upstream


def _table(folder: Path, *names: str) -> str:
    file = folder / 'groups.txt'
    file.write_text('\n'.join(f'{name}\tletters' for name in names))
    return str(file)


def _config(work_dir: Path, groups: Any, model: dict | None = None) -> Config:
    loss = dict(type='ALSRLoss', groups=groups)
    model = model or resnet()
    model.get('head', model)['loss'] = loss
    return config(model, work_dir, train_cfg=dict(by_epoch=True, max_epochs=1))


def test_groups_of_the_data_sets_own_classes_train(tmp_path: Path) -> None:
    runner = build_runner(_config(tmp_path, _table(tmp_path, 'c0', 'c1', 'c2', 'c3')))
    runner.train()
    assert runner.iter == 4


def test_other_names_are_refused_before_the_first_step(tmp_path: Path) -> None:
    runner = build_runner(_config(tmp_path, _table(tmp_path, 'c0', 'c2', 'c1', 'c3')))
    with pytest.raises(SetupError, match=r"RandomImages: its classes .* the groups \(1: 'c1', not 'c2', 2: 'c2', not"):
        runner.train()
    assert runner.iter == 0


def test_a_config_can_list_the_hook_for_stock_tools(tmp_path: Path) -> None:
    cfg = _config(tmp_path, _table(tmp_path, 'c0', 'c2', 'c1', 'c3'))
    cfg.custom_hooks = [dict(type='CheckClassesHook')]
    with pytest.raises(SetupError, match='RandomImages: its classes are not those of the groups'):
        Runner.from_cfg(cfg).train()


def test_names_are_looked_for_inside_wrappers(tmp_path: Path) -> None:
    cfg = _config(tmp_path, _table(tmp_path, 'c0', 'c2', 'c1', 'c3'))
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    with pytest.raises(SetupError, match='RepeatDataset: its classes are not those of the groups'):
        build_runner(cfg).train()


@pytest.mark.parametrize(('model', 'owner'), [(resnet, 'LinearClsHead'), (timm_student, 'TimmStudent')])
def test_another_number_of_classes_is_refused_when_the_model_is_built(tmp_path: Path, model: Any, owner: str) -> None:
    with pytest.raises(SetupError, match=f'{owner} has 4 classes, but the groups have 5'):
        build_runner(_config(tmp_path, ['a', 'a', 'b', 'b', 'b'], model()))


def test_the_same_in_a_distilled_model(tmp_path: Path) -> None:
    cfg = _config(tmp_path, ['a', 'a', 'b', 'b', 'b'])
    cfg.model = distilled(cfg.model, timm_teacher(tmp_path))
    with pytest.raises(SetupError, match='the student has 4 classes, but the groups have 5'):
        build_runner(cfg)


# Data and model


def _folders(root: Path, *classes: str) -> str:
    """A data set of one 32 x 32 image a class, by folders; returns its path."""
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(root / name / '0.png')
    return str(root)


def _loader(folder: str, **options: Any) -> dict:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_root=folder, pipeline=pipeline, **options)
    sampler = dict(type='DefaultSampler', shuffle=False)
    return dict(batch_size=2, num_workers=0, dataset=dataset, sampler=sampler, collate_fn=dict(type='default_collate'))


VALIDATE = dict(val_evaluator=dict(type='Accuracy'), val_cfg=dict())


@pytest.mark.parametrize(
    ('train', 'val', 'facts', 'hook'),
    [
        ('abcd', 'abcd', (), 'distill'),
        ('abc', 'abcd', ('train_dataloader', '3 classes', 'model 4', 'num_classes=3'), 'build_runner'),
        ('abc', 'abcd', ('train_dataloader', '3 classes', 'model 4', 'num_classes=3'), 'distill'),
        ('abcde', 'abcd', ('train_dataloader', '5 classes', 'model 4'), 'distill'),
        ('abcd', 'abd', ('val_dataloader', '3 classes', 'model 4'), 'distill'),
        ('abcd', 'abde', ('val_dataloader', 'lacks c', 'adds e'), 'build_runner'),
        ('abcd', 'wxyz', (), 'build_runner'),
    ],
)
def test_a_missing_or_surplus_folder_is_found(
    train: str, val: str, facts: tuple[str, ...], hook: str, tmp_path: Path
) -> None:
    cfg = config(resnet(), tmp_path, **VALIDATE, train_cfg=dict(by_epoch=True, max_epochs=1))
    cfg.train_dataloader = _loader(_folders(tmp_path / 'train', *train))
    cfg.val_dataloader = _loader(_folders(tmp_path / 'val', *val))
    mixed = distill(cfg, timm_teacher(tmp_path), 'kd')
    runner = Runner.from_cfg(mixed) if hook == 'distill' else build_runner(cfg)
    if not facts:
        runner.train()
        return
    with pytest.raises(SetupError) as error:
        runner.train()
    assert all(fact in str(error.value) for fact in facts) and runner.iter == 0


def test_a_validation_set_in_another_order_is_refused(tmp_path: Path) -> None:
    folder = _folders(tmp_path / 'all', *'abcd')
    cfg = config(resnet(), tmp_path, **VALIDATE)
    cfg.train_dataloader = _loader(folder)
    cfg.val_dataloader = _loader(folder, classes=list('bacd'))
    with pytest.raises(SetupError, match=r"another order \(0: 'b', not 'a', 1: 'a', not 'b'\)"):
        build_runner(cfg).train()


@pytest.mark.parametrize('label', [4, -1])
def test_labels_out_of_range_are_named(label: int, tmp_path: Path) -> None:
    _folders(tmp_path / 'all', *'abcd')
    (tmp_path / 'list.txt').write_text(f'a/0.png 0\nb/0.png {label}\n')
    cfg = config(resnet(), tmp_path)
    cfg.train_dataloader = _loader(str(tmp_path / 'all'), ann_file=str(tmp_path / 'list.txt'))
    with pytest.raises(SetupError, match=rf'labels {label}, the model 4 classes, 0 to 3.*model\.head\.num_classes'):
        build_runner(cfg).train()


@pytest.mark.parametrize('model', [resnet, timm_student])
def test_one_class_is_refused(model: Any, tmp_path: Path) -> None:
    cfg = config(resnet(num_classes=1) if model is resnet else timm_student() | dict(num_classes=1), tmp_path)
    with pytest.raises(SetupError, match='the model has 1 class'):
        build_runner(cfg).train()


def test_several_labels_are_refused_for_a_distilled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = [dict(img=np.zeros((SIZE, SIZE, 3), np.uint8), gt_label=[0, 3]) for _ in range(4)]
    monkeypatch.setattr(RandomImages, 'load_data_list', lambda self: several)
    cfg = config(distilled(resnet(), timm_teacher(tmp_path)), tmp_path)
    with pytest.raises(SetupError, match='image 0 has 2 labels'):
        build_runner(cfg).train()


def test_a_test_set_of_another_number_is_refused(tmp_path: Path) -> None:
    cfg = config(resnet(), tmp_path, test_evaluator=dict(type='Accuracy'), test_cfg=dict())
    cfg.test_dataloader = _loader(_folders(tmp_path / 'test', *'abcde'))
    cfg.custom_hooks = [dict(type='CheckClassesHook')]
    with pytest.raises(SetupError, match='test_dataloader: CustomDataset has 5 classes, the model 4'):
        Runner.from_cfg(cfg).test()


def test_mixed_targets_of_another_number_are_refused(tmp_path: Path) -> None:
    model = resnet(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))
    model['data_preprocessor'] = model['data_preprocessor'] | dict(num_classes=9)
    with pytest.raises(SetupError, match='9 classes, the model 4'):
        build_runner(config(model, tmp_path)).train()


def test_models_of_other_tasks_are_not_checked(tmp_path: Path) -> None:
    head = dict(type='MultiLabelLinearClsHead', num_classes=7, in_channels=32)
    assert class_count(build(resnet(head=head))) is None
    assert class_count(build(resnet())) == class_count(build(timm_student())) == CLASSES


@pytest.mark.parametrize(
    ('stated', 'names', 'fits'),
    [(['a', 'A'], ['A', 'a'], False), (['b', 'a'], ['a', 'b'], False), (['a b', 'c'], ['A_b', 'C'], True)],
)
def test_orders_are_compared_as_exactly_as_names(stated: list[str], names: list[str], fits: bool) -> None:
    if fits:
        check_classes_hook._refuse_another_order(stated, names, 'Data')
        return
    with pytest.raises(SetupError, match='another order'):
        check_classes_hook._refuse_another_order(stated, names, 'Data')
