"""Distilled configs and the plain ones inside them."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmpretrain.registry import HOOKS

from fnkd_plugin import Distiller
from fnkd_plugin.mm.config import (
    config_file,
    dicts_in,
    is_distilled,
    merge_options,
    plain_config,
    plain_model,
    split_options,
    without_pretrained,
)
from tests.helpers import config, distilled, preprocessor, resnet, timm_student

pytestmark = pytest.mark.upstream

TEACHER = dict(type='TimmTeacher', model='resnet50', checkpoint='t.pth')


def _config(student: dict | None = None, **options: Any) -> Config:
    return config(distilled(student or resnet(), TEACHER), Path('w'), **options)


@pytest.mark.parametrize('kind', ['Distiller', 'mmpretrain.Distiller', Distiller])
def test_is_distilled(kind: Any) -> None:
    assert is_distilled(Config(dict(model=dict(type=kind))))
    assert not is_distilled(config(resnet(), Path('w')))
    assert not is_distilled(Config(dict(model=None))) and not is_distilled(Config({}))


def test_plain_model_is_the_student_with_its_data_preprocessor() -> None:
    assert plain_model(_config()) == plain_model(config(resnet(), Path('w'))) == resnet()
    bare = {k: v for k, v in resnet().items() if k != 'data_preprocessor'}
    assert plain_model(_config(bare, data_preprocessor=preprocessor()))['data_preprocessor'] == preprocessor()
    cfg = _config(bare)
    cfg.model.data_preprocessor = preprocessor()
    assert plain_model(cfg)['data_preprocessor'] == preprocessor()
    assert 'data_preprocessor' not in cfg.model.student, 'a copy'


def test_without_pretrained() -> None:
    model = without_pretrained(Config(dict(model=timm_student(pretrained=True, checkpoint='x.pth'))).model)
    assert model.pretrained is False and 'checkpoint' not in model
    stock = Config(dict(model=resnet(pretrained='torchvision://resnet18'))).model
    assert without_pretrained(stock).pretrained is None
    timm_backbone = dict(type='TIMMBackbone', model_name='test_resnet', checkpoint_path='x.pth')
    assert (
        'checkpoint_path' not in without_pretrained(Config(dict(model=resnet(backbone=timm_backbone))).model).backbone
    )


def test_plain_config_has_nothing_of_ours() -> None:
    cfg = _config(
        custom_imports=dict(imports=['fnkd_plugin', 'mine'], allow_failed_imports=False),
        custom_hooks=[dict(type='EvaluateTeacherHook'), dict(type='EMAHook')],
    )
    cfg.default_hooks.update(
        reproducible=dict(type='ReproducibleHook'), safe=dict(type='SafeCheckpointHook'), none=None
    )
    plain = plain_config(cfg)
    assert plain.model == resnet()
    assert set(plain.default_hooks) == {'logger', 'checkpoint', 'none'}
    assert plain.custom_hooks == [dict(type='EMAHook')]
    assert plain.custom_imports['imports'] == ['mine']
    assert is_distilled(cfg) and cfg.default_hooks.safe is not None, 'a copy'
    cfg.custom_imports = dict(imports=['fnkd_plugin'])
    assert 'custom_imports' not in plain_config(cfg)


def test_plain_config_has_none_of_our_hooks() -> None:
    own = [name for name, kind in HOOKS.module_dict.items() if kind.__module__.startswith('fnkd_plugin')]
    cfg = _config(custom_hooks=[dict(type=name) for name in [*own, 'EMAHook']])
    assert len(own) >= 6 and plain_config(cfg).custom_hooks == [dict(type='EMAHook')]


def test_plain_config_of_a_timm_student_is_stock_timm() -> None:
    student = timm_student('resnet18', channels_last=True, pretrained=True, drop_rate=0.1)
    assert plain_config(_config(student)).model == dict(
        type='TimmClassifier',
        model_name='resnet18',
        num_classes=4,
        data_preprocessor=preprocessor(),
        pretrained=False,
        drop_rate=0.1,
    )


def test_plain_config_keeps_our_import_where_it_is_used() -> None:
    student = resnet()
    student['head']['loss'] = dict(type='LSRLoss')
    cfg = _config(student, custom_imports=dict(imports=['fnkd_plugin'], allow_failed_imports=False))
    assert plain_config(cfg).custom_imports['imports'] == ['fnkd_plugin']


@pytest.mark.parametrize(
    ('option', 'where'),
    [
        ('model.backbone.depth', 'model.student.backbone.depth'),
        ('model.head.num_classes', 'model.student.head.num_classes'),
        ('model.head.loss.loss_weight', 'model.student.head.loss.loss_weight'),
        ('model.train_cfg', 'model.student.train_cfg'),
        ('model.head.type', 'model.student.head.type'),
        ('model.student.head.topk', 'model.student.head.topk'),
        ('model.teacher.checkpoint', 'model.teacher.checkpoint'),
        ('model.head.hard_weight', 'model.head.hard_weight'),
        ('model.head.soft_loss.loss_weight', 'model.head.soft_loss.loss_weight'),
        ('model.head.warmup', 'model.head.warmup'),
        ('model.head.by_epoch', 'model.head.by_epoch'),
        ('model.pixels.channel_order', 'model.pixels.channel_order'),
        ('train_cfg.max_epochs', 'train_cfg.max_epochs'),
        ('optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.lr'),
    ],
)
def test_options_for_the_plain_model_reach_the_student(option: str, where: str) -> None:
    cfg = _config()
    merge_options(cfg, {option: 77})
    node: Any = cfg
    for key in where.split('.'):
        node = node[key]
    assert node == 77


def test_options_of_what_is_mixed_in_are_told_from_the_plain_models() -> None:
    plain = {
        'model.type': 1,
        'model.head.type': 2,
        'model.head.loss.type': 3,
        'model.headless': 4,
        'teacher': 5,
        'model': 6,
    }
    mixed_in = {'model.teacher.mean': 1, 'model.head.warmup': 2, 'model.head.soft_loss.tau': 3, 'model.pixels': 4}
    assert split_options({**plain, **mixed_in}) == (plain, mixed_in)


def test_a_shipped_config_is_found() -> None:
    assert config_file('mmpretrain::resnet/resnet50_8xb32_in1k.py').is_file()
    assert config_file('a/b.py') == Path('a/b.py') and config_file(Path('c.py')) == Path('c.py')


def test_options_of_a_plain_config_are_as_written() -> None:
    cfg = config(resnet(), Path('w'))
    merge_options(cfg, {'model.backbone.depth': 50, 'model.head.soft_loss': 1})
    assert cfg.model.backbone.depth == 50 and cfg.model.head.soft_loss == 1


def test_a_variable_of_the_file_is_replaced_wherever_it_was_used() -> None:
    cfg = _config(data_root='data/cub', other='data/cubs')
    cfg.train_dataloader.dataset.data_root = 'data/cub'
    cfg.train_dataloader.dataset.ann_file = 'data/cub/train.txt'
    merge_options(cfg, {'data_root': '/mnt/birds'})
    assert cfg.data_root == cfg.train_dataloader.dataset.data_root == '/mnt/birds'
    assert cfg.train_dataloader.dataset.ann_file == '/mnt/birds/train.txt'
    assert cfg.other == 'data/cubs'


def test_fields_of_the_runner_are_no_variables() -> None:
    cfg = _config(log_level='INFO', launcher='none', sync_bn='torch', custom_hooks=[dict(level='INFO', how='none')])
    cfg.val_dataloader = dict(kind='torch')
    merge_options(cfg, dict(log_level='DEBUG', launcher='pytorch', sync_bn='mmcv'))
    assert cfg.log_level == 'DEBUG' and cfg.launcher == 'pytorch' and cfg.sync_bn == 'mmcv'
    assert cfg.custom_hooks == [dict(level='INFO', how='none')] and cfg.val_dataloader.kind == 'torch'


def test_variables_are_replaced_once_in_tuples_and_below_a_folder_with_a_slash() -> None:
    paths = ('a/train.txt', ['a/', 'a', 'ab', 'b', 'b/c/x.pth'])
    cfg = Config(dict(model=resnet(), first='a/', second='b', third='b/c', paths=paths))
    merge_options(cfg, dict(first='b', second='z/', third='w', nowhere='q'))
    assert cfg.paths == ('b/train.txt', ['b', 'b', 'ab', 'z/', 'w/x.pth'])
    assert (cfg.first, cfg.second, cfg.third, cfg.nowhere) == ('b', 'z/', 'w', 'q')


def test_dicts_in() -> None:
    assert list(dicts_in(dict(a=[dict(b=1)], c=(dict(d=dict()),)))) == [
        dict(a=[dict(b=1)], c=(dict(d={}),)),
        dict(b=1),
        dict(d={}),
        {},
    ]
