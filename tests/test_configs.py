"""The shipped configs: all build, and the CUB-200-2011 pair runs end to end on a tiny made-up folder."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.fileio import get_file_backend
from PIL import Image

from fnkd_plugin import Distiller
from fnkd_plugin.config import plain_model, without_pretrained
from fnkd_plugin.errors import SetupError
from tests.helpers import build

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)


def _train_tool():
    spec = importlib.util.spec_from_file_location('train_tool', ROOT / 'tools' / 'train.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_student_of_each_config_builds(path: Path) -> None:
    cfg = Config.fromfile(path)
    model = build(without_pretrained(plain_model(cfg)))
    assert sum(p.numel() for p in model.parameters()) > 0


def _random_teacher(teacher: dict, folder: Path) -> dict:
    """``teacher`` with a checkpoint of random weights in place of its own."""
    if teacher['type'] == 'TimmTeacher':
        state = timm.create_model(teacher['model'], num_classes=200).state_dict()
    else:
        state = build(without_pretrained(plain_model(Config.fromfile(teacher['config'])))).state_dict()
    torch.save(state, folder / 'teacher.pth')
    return {**teacher, 'checkpoint': str(folder / 'teacher.pth')}


DISTILLED = [p for p in CONFIGS if 'kd_' in p.name]


@pytest.mark.parametrize('path', DISTILLED, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_each_distilled_config_builds_whole(path: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(path)
    student = without_pretrained(plain_model(cfg))
    model = build({**cfg.model, 'student': student, 'teacher': _random_teacher(cfg.model.teacher, tmp_path)})
    assert isinstance(model, Distiller)


def test_teacher_then_student_end_to_end(cub_root: Path, tmp_path: Path) -> None:
    """Teacher config, then FNKD config, through tools/train.py; smaller nets stand in for the two ResNets."""
    train = _train_tool()
    loaders = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0']
    small = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', f'data_root={cub_root}', *loaders]
    tiny = ['model.model=test_resnet', 'model.pretrained=False']
    teacher_dir, student_dir = tmp_path / 'teacher', tmp_path / 'student'
    flags = ['--work-dir', str(teacher_dir), '--cfg-options', *small, *tiny]
    train.main([str(ROOT / 'configs/teachers/r152_cub.py'), *flags])
    taught = ['model.teacher.model=test_resnet', f'teacher_checkpoint={teacher_dir / "epoch_1.pth"}']
    flags = ['--work-dir', str(student_dir), '--evaluate-teacher', '--cfg-options', *small, *tiny, *taught]
    train.main([str(ROOT / 'configs/fnkd_r50_cub.py'), *flags])
    saved = torch.load(student_dir / 'epoch_1.pth', weights_only=True)
    assert set(saved['state_dict']) == set(timm.create_model('test_resnet', num_classes=200).state_dict())
    log = next(student_dir.glob('*/*.log')).read_text()
    assert 'loss_soft' in log and 'Teacher TimmTeacher(test_resnet) on the validation set' in log
    assert (student_dir / 'plain_fnkd_r50_cub.py').is_file()


def test_missing_data_and_teacher_say_what_to_do(cub_root: Path, tmp_path: Path) -> None:
    train = _train_tool()
    flags = ['--work-dir', str(tmp_path), '--cfg-options', 'model.pretrained=False']
    config = [str(ROOT / 'configs/fnkd_r50_cub.py'), *flags]
    with pytest.raises(SetupError, match=r'no folder .*nowhere.*--cfg-options data_root=FOLDER'):
        train.main([*config, 'data_root=nowhere'])
    with pytest.raises(SetupError, match=r'none\.pth does not exist. Give its path'):
        train.main([*config, f'data_root={cub_root}', 'teacher_checkpoint=none.pth'])


@pytest.mark.skipif('FNKD_DATA' not in os.environ, reason='FNKD_DATA names no folder of local data')
def test_cub2010_is_read_from_its_archive() -> None:
    cfg = Config.fromfile(ROOT / 'configs/cub2010/plain_lite0_cub2010.py')
    from mmpretrain.registry import DATASETS

    data = {part: DATASETS.build({**cfg.train_dataloader.dataset, 'part': part}) for part in ('all', 'fit', 'tune')}
    assert len(data['all']) == 3066 and len(data['fit']) + len(data['tune']) == 3066
    paths = {part: {data[part].get_data_info(i)['img_path'] for i in range(len(data[part]))} for part in data}
    assert not paths['fit'] & paths['tune'] and len(data['all'].metainfo['classes']) == 200
    assert data['all'][0]['inputs'].shape == (3, 112, 112)
    assert get_file_backend(next(iter(paths['all']))).get(next(iter(paths['all'])))[:2] == b'\xff\xd8'
