"""Reading configs with overrides, and the plain config of a distilled one."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmpretrain.registry import HOOKS

from fnkd_plugin import Distiller
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import (
    config_file,
    dicts_in,
    is_distilled,
    is_distilled_key,
    load_config,
    merge_options,
    plain_config,
    plain_model,
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


@pytest.mark.parametrize('key', ['model.type', 'model.head.type', 'model.head.loss.type', 'model.headless', 'model'])
def test_options_of_the_plain_model(key: str) -> None:
    assert not is_distilled_key(key)


@pytest.mark.parametrize(
    'key', ['model.teacher.mean', 'model.head.warmup', 'model.head.soft_loss.tau', 'model.pixels', 'model.classes']
)
def test_options_of_distilled_configs_only(key: str) -> None:
    assert is_distilled_key(key)


def test_a_shipped_config_is_found() -> None:
    assert config_file('mmpretrain::resnet/resnet50_8xb32_in1k.py').is_file()
    assert config_file('a/b.py') == Path('a/b.py') and config_file(Path('c.py')) == Path('c.py')


def test_options_of_a_plain_config_are_as_written() -> None:
    cfg = config(resnet(), Path('w'))
    merge_options(cfg, {'model.backbone.depth': 50, 'model.head.soft_loss': 1})
    assert cfg.model.backbone.depth == 50 and cfg.model.head.soft_loss == 1


VARIABLES = """
model = dict(type='ImageClassifier')
split = 'train'
data_root = 'data'
folder = data_root + '/images'
depth = 18
teacher = dict(checkpoint='data/teacher.pth', depth=18)
train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[
    dict(type='CustomDataset', data_root=data_root, data_prefix=split, ann_file=f'{folder}/train.txt'),
    dict(type='CustomDataset', data_root='data', data_prefix='train')]))
"""
BASE = VARIABLES.replace('depth = 18', 'depth = 18; test_root = data_root')
CHILD = """
_base_ = 'base.py'
data_root = 'data'
checkpoint = {{_base_.folder}}
value = {{_base_.depth}}
val_dataloader = dict(dataset=dict(data_root=data_root, depth={{_base_.depth}}))
"""
PURE_CHILD = """
from mmengine.config import read_base
with read_base():
    from .pure_base import *
val_dataloader = dict(dataset=dict(data_root=data_root, split='train'))
"""


def test_all_that_a_variable_makes_follows_it_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / 'config.py'
    file.write_text(VARIABLES)
    cfg = load_config(file, {'data_root': '/mnt/birds', 'split': 'val', 'depth': 34, 'new': 1})
    first, second = cfg.train_dataloader.dataset.datasets
    assert (first.data_root, first.data_prefix) == ('/mnt/birds', 'val')
    assert first.ann_file == '/mnt/birds/images/train.txt' and cfg.folder == '/mnt/birds/images'
    assert (second.data_root, second.data_prefix) == ('data', 'train')
    assert cfg.teacher == dict(checkpoint='data/teacher.pth', depth=18)
    assert (cfg.data_root, cfg.split, cfg.depth, cfg.new) == ('/mnt/birds', 'val', 34, 1)
    assert load_config(file).data_root == 'data', 'the next reading has the values of the file'


def test_variables_of_bases_are_followed_through_placeholders(tmp_path: Path) -> None:
    (tmp_path / 'base.py').write_text(BASE)
    file = tmp_path / 'child.py'
    file.write_text(CHILD)
    cfg = load_config(file, dict(depth=50, data_root='x'))
    assert cfg.depth == cfg.value == cfg.val_dataloader.dataset.depth == 50
    # The child has a variable of this name of its own, which the base did not use.
    assert cfg.data_root == cfg.val_dataloader.dataset.data_root == 'x'
    assert cfg.train_dataloader.dataset.datasets[0].data_root == cfg.test_root == 'data'
    assert load_config(file, dict(folder='f')).checkpoint == 'f'


def test_variables_of_pure_python_configs_are_followed(tmp_path: Path) -> None:
    (tmp_path / 'pure_base.py').write_text('from mmpretrain.models import ImageClassifier\n' + VARIABLES)
    file = tmp_path / 'pure_child.py'
    file.write_text(PURE_CHILD)
    cfg = load_config(file, dict(data_root='x', split='val'))
    assert cfg.val_dataloader.dataset == dict(data_root='x', split='train')
    first, second = cfg.train_dataloader.dataset.datasets
    assert (first.data_root, first.data_prefix, first.ann_file) == ('x', 'val', 'x/images/train.txt')
    assert (second.data_root, second.data_prefix) == ('data', 'train')


@pytest.mark.parametrize(
    ('lines', 'used'),
    [
        ("root: str = 'a'\nused = root", 'x'),
        ("root = 'a'\nroot += 'b'\nused = root", 'x'),
        ("other = root = 'a'\nused = [root, other]", ['x', 'a']),
        ("root, other = 'a', 'b'\nused = [root, other]", ['x', 'b']),
        ("root = 'a'\nbefore = root\nroot = 'b'\nused = [before, root]", ['a', 'x']),
        ("root = 'a'\nused = [root for root in 'bc']", ['b', 'c']),
    ],
)
def test_the_last_binding_of_a_variable_counts(lines: str, used: Any, tmp_path: Path) -> None:
    file = tmp_path / 'config.py'
    file.write_text(f'model = dict(type="A")\n{lines}\n')
    assert load_config(file, dict(root='x')).used == used


def test_a_variable_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / 'config.py'
    file.write_text('model = dict(type="A")\nif True:\n    root = "a"\n    used = root\n')
    with pytest.raises(SetupError, match=r'root: .*config\.py .* line 2'):
        load_config(file, dict(root='x'))


def test_dicts_in() -> None:
    assert list(dicts_in(dict(a=[dict(b=1)], c=(dict(d=dict()),)))) == [
        dict(a=[dict(b=1)], c=(dict(d={}),)),
        dict(b=1),
        dict(d={}),
        {},
    ]
