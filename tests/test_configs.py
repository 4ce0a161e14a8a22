"""The shipped configs: all build, variants differ in their method alone, and pairs run end to end on made-up data."""

import ast
import copy
import functools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import get_file_backend
from mmpretrain.datasets import CIFAR100
from mmpretrain.registry import MODELS
from PIL import Image

from fnkd_plugin import Distiller, presets
from fnkd_plugin.cli import train
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import plain_config, plain_model, without_pretrained
from fnkd_plugin.taxonomy import taxonomy_of

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)


@pytest.fixture
def cub_root(tmp_path: Path) -> Path:
    """Eight images in the layout of CUB-200-2011, four of them for training."""
    root = tmp_path / 'CUB_200_2011'
    (root / 'images').mkdir(parents=True)
    names = [f'{i:03d}.jpg' for i in range(8)]
    for i, name in enumerate(names):
        pixels = np.random.RandomState(i).randint(0, 256, (240, 300, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / 'images' / name)
    for file, values in {
        'images.txt': names,
        'image_class_labels.txt': [25 * i + 1 for i in range(8)],
        'train_test_split.txt': [i % 2 for i in range(8)],
    }.items():
        (root / file).write_text(''.join(f'{i + 1} {value}\n' for i, value in enumerate(values)))
    return root


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def _config(path: Path) -> Config:
    return Config.fromfile(path)


@functools.cache
def _built(model: str) -> torch.nn.Module:
    return MODELS.build(ast.literal_eval(model))


@pytest.mark.parametrize('path', CONFIGS, ids=_name)
def test_student_of_each_config_builds(path: Path) -> None:
    with torch.device('meta'):  # no memory, and no initial weights to draw
        model = MODELS.build(without_pretrained(plain_model(_config(path))))
    assert sum(p.numel() for p in model.parameters()) > 0


DISTILLED = [p for p in CONFIGS if 'kd_' in p.name]


@functools.cache
def _teacher_file(architecture: str, folder: Path) -> str:
    """A file of random weights for a timm model, or for the plain model of a config."""
    if architecture.endswith('.py'):
        state = _built(repr(without_pretrained(plain_model(_config(Path(architecture)))).to_dict())).state_dict()
    else:
        name, classes = architecture.split()
        state = timm.create_model(name, num_classes=int(classes)).state_dict()
    path = folder / f'{Path(architecture).stem}.pth'
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope='module')
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('teachers')


@pytest.mark.parametrize('path', DISTILLED, ids=_name)
def test_each_pair_builds_whole(path: Path, teacher_folder: Path) -> None:
    cfg = _config(path)
    teacher = cfg.model.teacher.to_dict()
    architecture = teacher.get('config') or f'{teacher["model"]} {cfg.data_preprocessor.num_classes}'
    teacher['checkpoint'] = _teacher_file(architecture, teacher_folder)
    model = MODELS.build({**cfg.model, 'student': without_pretrained(plain_model(cfg)), 'teacher': teacher})
    assert isinstance(model, Distiller)


def _read(name: str, *flags: str) -> Config:
    return train.read_config(train.parse_args([str(ROOT / 'configs' / name), *flags]))


def test_one_distilled_file_a_pair() -> None:
    pairs = [p.name.split('_', 1)[1] for p in DISTILLED if p.parent.name not in ('cub2010', 'demo', 'configs')]
    assert len(pairs) == len(set(pairs)) == 20
    kinds = {p.name.split('_')[0] for p in CONFIGS}
    assert kinds == {'plain', 'fnkd', 'kd', 'self', 'he', 'teacher'}


@pytest.mark.parametrize(
    ('method', 'soft_loss', 'others'),
    [
        ('kd', dict(type='KDLoss', temperature=4.0, loss_weight=0.5), dict(hard_weight=0.5)),
        ('kd_t1', dict(type='KDLoss', temperature=1.0, loss_weight=0.5), dict(hard_weight=0.5)),
        ('kd_benchmark', dict(type='KDLoss', temperature=4.0, loss_weight=0.9), dict(hard_weight=0.1)),
        ('kd_authors', dict(type='KDLoss', temperature=3.0, loss_weight=0.5), dict(hard_weight=0.5)),
        ('dkd_beta2', dict(type='DKDLoss', alpha=1.0, beta=2.0, temperature=4.0), dict(warmup=1 / 12)),
        ('fnkd', dict(type='FNKDLoss'), {}),
    ],
)
def test_the_methods_of_a_pair_differ_in_the_head_alone(method: str, soft_loss: dict, others: dict) -> None:
    """What configs/cifar100/dkd_r20_from_r56_cifar100.py and the like said."""
    name = 'cifar100/fnkd_r20_from_r56_cifar100.py'
    plain = _read('cifar100/plain_r20_cifar100.py')
    cfg = _read(name, '--distill', method)
    assert cfg.model.head == dict(type='DistillHead', soft_loss=soft_loss, **others)
    assert cfg.model.student == plain.model
    assert cfg.model.teacher == dict(
        type='MMPretrainTeacher',
        config=str(ROOT / 'configs/cifar100/plain_r56_cifar100.py'),
        checkpoint='work_dirs/plain_r56_cifar100/epoch_240.pth',
    )
    others_of = [{k: v for k, v in c.items() if k not in ('model', 'teacher_checkpoint')} for c in (cfg, plain)]
    assert others_of[0] == others_of[1]


def test_the_paper_s_pairs_have_the_authors_values() -> None:
    for pair in ('preact20_from_preact56', 'preact56_from_preact110'):
        for data in ('cifar10', 'cifar100'):
            head = _config(ROOT / f'configs/{data}/fnkd_{pair}_{data}_200e.py').model.head
            assert head == presets.fnkd_authors


GROUPS = ROOT / 'configs/_base_/cifar10_groups.txt'


@pytest.mark.parametrize(
    ('name', 'groups', 'expected'),
    [
        ('cub/plain_r18_cub.py', 'cub', 'cub'),
        ('cub2010/plain_lite0_cub2010.py', 'cub', dict(rule='last_word', classes='CUB2010')),
        ('cars/plain_r18_cars.py', 'cars_make', 'cars_make'),
        ('cars/plain_r18_cars.py', 'cars_body', 'cars_body'),
        ('cifar100/plain_r20_cifar100.py', 'cifar100', 'cifar100'),
        ('cifar10/plain_r20_cifar10.py', str(GROUPS), str(GROUPS)),
    ],
)
def test_smoothed_labels_replace_the_loss_alone(name: str, groups: str, expected: object) -> None:
    plain = _read(name)
    for flags, loss in (
        (['lsr'], presets.lsr),
        (['alsr', '--label-smoothing-cfg', f'groups={groups}'], presets.alsr | dict(groups=expected)),
    ):
        cfg = _read(name, '--label-smoothing', *flags)
        assert (cfg.model.get('head') or cfg.model).pop('loss') == loss
        assert cfg.model == _without_loss(plain.model)
        assert {k: v for k, v in cfg.items() if k != 'model'} == {k: v for k, v in plain.items() if k != 'model'}
    taxonomy = taxonomy_of(expected)
    assert len(taxonomy.neighbours) == (plain.model.get('head') or plain.model).num_classes


def _without_loss(model: ConfigDict) -> ConfigDict:
    model = copy.deepcopy(model)
    (model.get('head') or model).pop('loss', None)
    return model


def test_options_of_a_mixed_in_loss_come_last() -> None:
    flags = ['--label-smoothing', 'lsr', '--cfg-options']
    assert _read('demo/plain_digits.py', *flags, 'model.head.loss.eps=0.3').model.head.loss.eps == 0.3
    assert _read('cub/plain_r18_cub.py', *flags, 'model.loss.eps=0.3').model.loss.eps == 0.3
    student = _read('cub/fnkd_r18_from_r50_cub.py', *flags, 'model.loss.eps=0.3').model.student
    assert student.loss == dict(type='LSRLoss', eps=0.3)


@pytest.mark.parametrize('path', [p for p in DISTILLED if p.parent != ROOT / 'configs'], ids=_name)
def test_teacher_checkpoint_is_what_its_config_writes(path: Path) -> None:
    cfg = _config(path)
    made_by = path.parent / f'{Path(cfg.teacher_checkpoint).parent.name}.py'
    loop = _config(made_by).train_cfg
    last = f'epoch_{loop.max_epochs}' if loop.by_epoch else f'iter_{loop.max_iters}'
    assert cfg.model.teacher.checkpoint == cfg.teacher_checkpoint == f'work_dirs/{made_by.stem}/{last}.pth'
    teacher = cfg.model.teacher
    assert teacher.get('config', str(made_by)) == str(made_by)
    assert teacher.get('model') == _config(made_by).model.get('model')


def test_teacher_then_student_end_to_end(cub_root: Path, tmp_path: Path) -> None:
    """Teacher config, then FNKD config, through tools/train.py; smaller nets stand in for the two ResNets."""
    loaders = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0']
    small = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', f'data_root={cub_root}', *loaders]
    tiny = ['model.model=test_resnet', 'model.pretrained=False']
    teacher_dir, student_dir = tmp_path / 'teacher', tmp_path / 'student'
    flags = ['--work-dir', str(teacher_dir), '--cfg-options', *small, *tiny]
    train.main([str(ROOT / 'configs/cub/plain_r152_cub.py'), *flags])
    taught = ['model.teacher.model=test_resnet', f'teacher_checkpoint={teacher_dir / "epoch_1.pth"}']
    flags = ['--work-dir', str(student_dir), '--evaluate-teacher', '--cfg-options', *small, *tiny, *taught]
    train.main([str(ROOT / 'configs/fnkd_r50_cub.py'), *flags])
    saved = torch.load(student_dir / 'epoch_1.pth', weights_only=True)
    assert set(saved['state_dict']) == set(timm.create_model('test_resnet', num_classes=200).state_dict())
    log = next(student_dir.glob('*/*.log')).read_text()
    assert 'loss_soft' in log and 'Teacher TimmTeacher(test_resnet) on the validation set' in log
    assert (student_dir / 'plain_fnkd_r50_cub.py').is_file()


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen images of noise in each of the official files of CIFAR-100, whose checksums are not checked."""
    folder = tmp_path / 'cifar100' / 'cifar-100-python'
    folder.mkdir(parents=True)
    for seed, split in enumerate(('train', 'test')):
        images = np.random.RandomState(seed).randint(0, 256, (16, 3072)).astype(np.uint8)
        content = dict(data=images, fine_labels=[6 * i for i in range(16)])
        (folder / split).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(CIFAR100, f'{split}_list', [[split, None]])
    return folder.parent


@pytest.mark.slow
def test_cifar100_pair_end_to_end(cifar_root: Path, tmp_path: Path) -> None:
    loaders = ['train_dataloader.num_workers=0', 'val_dataloader.num_workers=0', 'train_dataloader.batch_size=8']
    small = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', f'data_root={cifar_root}', *loaders]
    teacher_dir, student_dir = tmp_path / 'teacher', tmp_path / 'student'
    config = ROOT / 'configs/cifar100/plain_r56_cifar100.py'
    train.main([str(config), '--work-dir', str(teacher_dir), '--cfg-options', *small])
    taught = [*small, f'teacher_checkpoint={teacher_dir / "epoch_1.pth"}']
    config = ROOT / 'configs/cifar100/fnkd_r20_from_r56_cifar100.py'
    train.main([str(config), '--work-dir', str(student_dir), '--cfg-options', *taught])
    saved = torch.load(student_dir / 'epoch_1.pth', weights_only=True)['state_dict']
    assert set(saved) == set(_built(repr(plain_model(_config(config)).to_dict())).state_dict())
    assert 'loss_soft' in next(student_dir.glob('*/*.log')).read_text()


def test_the_plain_config_of_a_pair_needs_no_plugin() -> None:
    """A timm student on CUB is stock MMPretrain's to test."""
    plain = plain_config(_config(ROOT / 'configs/cub/fnkd_r18_from_r50_cub.py'))
    assert 'custom_imports' not in plain
    assert 'custom_imports' in plain_config(_read('cub/plain_r18_cub.py', '--label-smoothing', 'lsr'))


def test_missing_data_or_teacher_names_the_option_that_sets_it(cub_root: Path, tmp_path: Path) -> None:
    flags = ['--work-dir', str(tmp_path), '--cfg-options', 'model.pretrained=False']
    config = [str(ROOT / 'configs/fnkd_r50_cub.py'), *flags]
    with pytest.raises(SetupError, match=r'nowhere.*--cfg-options data_root='):
        train.main([*config, 'data_root=nowhere'])
    with pytest.raises(SetupError, match=r'none\.pth'):
        train.main([*config, f'data_root={cub_root}', 'teacher_checkpoint=none.pth'])


@pytest.mark.skipif('FNKD_DATA' not in os.environ, reason='FNKD_DATA names no folder of local data')
def test_cub2010_is_read_from_its_archive() -> None:
    cfg = Config.fromfile(ROOT / 'configs/cub2010/plain_lite0_cub2010.py')
    from mmpretrain.registry import DATASETS

    data = {part: DATASETS.build({**cfg.train_dataloader.dataset, 'part': part}) for part in ('all', 'fit', 'tune')}
    assert len(data['all']) == 3066 and len(data['fit']) + len(data['tune']) == 3066
    paths = {part: {data[part].get_data_info(i)['img_path'] for i in range(len(data[part]))} for part in data}
    assert not paths['fit'] & paths['tune'] and len(data['all'].metainfo['classes']) == 200
    assert data['all'][0]['inputs'].shape == (3, 80, 80)
    assert get_file_backend(next(iter(paths['all']))).get(next(iter(paths['all'])))[:2] == b'\xff\xd8'


@pytest.mark.parametrize('path', sorted((ROOT / 'configs' / 'cifar100').glob('*mbv2*.py')), ids=_name)
def test_mobilenets_are_trained_as_in_the_public_benchmarks(path: Path) -> None:
    expected = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert Config.fromfile(path).optim_wrapper.optimizer == expected
