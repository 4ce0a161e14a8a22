"""The shipped configs: all build, variants differ in their method alone, and pairs run end to end on made-up data."""

import ast
import difflib
import functools
import importlib.util
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.fileio import get_file_backend
from mmpretrain.datasets import CIFAR100
from mmpretrain.registry import MODELS
from PIL import Image

from fnkd_plugin import Distiller
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import named_dicts, plain_config, plain_model, without_pretrained

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)


def _twin(path: Path) -> Path:
    """The KD config beside an FNKD one, or the other way round."""
    old, new = ('fnkd_', 'kd_') if 'fnkd_' in path.name else ('kd_', 'fnkd_')
    return path.with_name(path.name.replace(old, new, 1))


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


DISTILLED = [p for p in CONFIGS if 'kd_' in p.name or p.name.startswith('dist_')]
FNKD = [p for p in DISTILLED if 'fnkd_' in p.name]


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


@pytest.mark.parametrize('path', [p for p in DISTILLED if p in FNKD or not _twin(p).is_file()], ids=_name)
def test_each_pair_builds_whole(path: Path, teacher_folder: Path) -> None:
    """With FNKD, which asks the most of both; KD of the same pair differs in the head alone (tested below)."""
    cfg = _config(path)
    teacher = cfg.model.teacher.to_dict()
    architecture = teacher.get('config') or f'{teacher["model"]} {cfg.data_preprocessor.num_classes}'
    teacher['checkpoint'] = _teacher_file(architecture, teacher_folder)
    model = MODELS.build({**cfg.model, 'student': without_pretrained(plain_model(cfg)), 'teacher': teacher})
    assert isinstance(model, Distiller)


METHODS = set(Config.fromfile(ROOT / 'configs/_base_/methods.py'))


def _leaves(path: Path) -> dict[str, str]:
    """What a config says, entry by entry; the variables that only hold the methods apart."""
    leaves = {}
    for name, node in named_dicts({k: v for k, v in _config(path)._cfg_dict.items() if k not in METHODS}):
        leaves.update({f'{name}.{key}': repr(value) for key, value in node.items() if not isinstance(value, dict)})
    return leaves


def _differences(a: Path, b: Path) -> set[str]:
    return {name for name, _ in _leaves(a).items() ^ _leaves(b).items()}


def _different_lines(a: Path, b: Path) -> int:
    """How many lines of code of ``b`` are not in ``a``."""
    code = [[line for line in path.read_text().splitlines() if not line.startswith('#')] for path in (a, b)]
    return sum(line.startswith('+ ') for line in difflib.ndiff(*code))


@pytest.mark.parametrize('path', [p for p in FNKD if _twin(p).is_file() and 'demo' not in p.parts], ids=_name)
def test_fnkd_and_kd_of_a_pair_differ_in_one_line(path: Path) -> None:
    assert _different_lines(path, _twin(path)) == 1
    different = _differences(path, _twin(path))
    assert different and all(name.startswith('.model.head.') for name in different)
    assert MODELS.build(_config(_twin(path)).model.head).active


OTHERS = [p for p in DISTILLED if p.name.startswith(('dkd_', 'dist_', 'ls_kd_', 'normkd_', 'kd_t1_r'))]


@pytest.mark.parametrize('path', OTHERS, ids=_name)
def test_other_methods_and_kd_of_a_pair_differ_in_one_line(path: Path) -> None:
    kd = path.with_name(f'kd_r{path.name.split("_r", 1)[1]}')
    assert _different_lines(path, kd) == 1
    different = _differences(path, kd)
    assert different and all(name.startswith('.model.head.') for name in different)


@pytest.mark.parametrize('path', [p for p in CONFIGS if p.name.startswith(('lsr_', 'alsr_'))], ids=_name)
def test_smoothed_labels_change_the_loss_alone(path: Path) -> None:
    method, rest = path.name.split('_', 1)
    different = _differences(path, path.with_name(f'plain_{rest}'))
    assert different and all(name.startswith(('.model.loss.', '.model.head.loss.')) for name in different)
    if method == 'alsr' and path.with_name(f'lsr_{rest}').is_file():
        assert _different_lines(path, path.with_name(f'lsr_{rest}')) == 1


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
    train = _train_tool()
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


def test_cifar100_pair_end_to_end(cifar_root: Path, tmp_path: Path) -> None:
    train = _train_tool()
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


def test_variables_that_hold_the_methods_need_no_plugin() -> None:
    """A timm student on CUB is stock MMPretrain's to test, though its file can name DistillHead."""
    plain = plain_config(_config(ROOT / 'configs/cub/kd_r18_from_r50_cub.py'))
    assert 'custom_imports' not in plain
    assert 'custom_imports' in plain_config(_config(ROOT / 'configs/cub/lsr_r18_cub.py'))


def test_missing_data_or_teacher_names_the_option_that_sets_it(cub_root: Path, tmp_path: Path) -> None:
    train = _train_tool()
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
