"""Labels softened by class names that are not the data's are refused before the first step."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.training import build_runner
from tests.helpers import config, distilled, resnet, timm_student, timm_teacher

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
    with pytest.raises(SetupError, match=f'{owner} has 4 classes, the groups are of 5'):
        build_runner(_config(tmp_path, ['a', 'a', 'b', 'b', 'b'], model()))


def test_the_same_in_a_distilled_model(tmp_path: Path) -> None:
    cfg = _config(tmp_path, ['a', 'a', 'b', 'b', 'b'])
    cfg.model = distilled(cfg.model, timm_teacher(tmp_path))
    with pytest.raises(SetupError, match='the student has 4 classes, the groups are of 5'):
        build_runner(cfg)
