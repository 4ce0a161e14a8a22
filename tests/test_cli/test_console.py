"""``fnkd`` from the shell: mistakes are one sentence, and ``--help`` answers at once."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmpretrain.registry import MODELS
from PIL import Image
from torch import nn

import fnkd_cli
from fnkd_cli import arguments
from fnkd_plugin.cli import doctor, publish
from fnkd_plugin.cli.mistakes import explained
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.distill_config import METHODS, SMOOTHINGS
from tests.helpers import timm_checkpoint
from tests.test_cli import photos
from tests.test_tools.configs import write_configs
from tests.test_tools.processes import ROOT, forget_run

MODEL = 'test_resnet'
PAIR = ['--student', MODEL, '--teacher', MODEL]


def fnkd(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run a command in this process; its exit code."""
    monkeypatch.setattr(sys, 'argv', ['fnkd', *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        fnkd_cli.main()
    forget_run()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def sentence(capsys: pytest.CaptureFixture) -> str:
    """The only line of standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('error: ')
    return lines[0]


def test_several_values_of_one_option() -> None:
    split = fnkd_cli._one_value_each(['compare', 'x', '--methods', 'a', 'b', '--seeds', '3'], '--methods')
    assert split == ['compare', 'x', '--methods', 'a', '--methods', 'b', '--seeds', '3']


def test_choices_are_those_of_the_package() -> None:
    assert set(arguments.presets('DistillHead')) == set(METHODS)
    assert set(arguments.presets('LSRLoss', 'ALSRLoss')) == set(SMOOTHINGS)


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        (['trian', 'x'], 'train'),
        (['train', 'x', '--studnt', 'y'], '--student'),
        (['train', 'x.py', '--distill', 'fnkt'], 'did you mean fnkd'),
        (['train', 'x.py', '--disitll', 'kd'], 'did you mean --distill '),
        (['train', 'x.py', '--distill', 'zzz'], 'known: '),
        (['analyze', 'x.py', 'x.pth', '--out', 'y', '--split', 'tran'], 'did you mean train'),
        (['compare', 'x', *PAIR, '--methods', 'kd', 'fknd'], 'did you mean fnkd'),
        (['train', 'x', *PAIR, '--method', 'fknd'], 'did you mean fnkd'),
        (['train', 'x.py', '--cfg-options', 'a'], 'KEY=VALUE'),
        (['train', 'x.py', '--teacher-checkpoint', 't.pth'], 't.pth'),
        (['cache', 'x.py', '--out', 'y', '--views', '0'], '--views'),
        (['compare', 'x', *PAIR, '--seeds', '0'], '--seeds'),
        (['export', 'x'], 'out'),
        (['compare', 'x', *PAIR, '--methods'], '--methods'),
        (['compare', 'x', '--methods', *PAIR], '--methods'),
    ],
)
def test_a_mistake_of_the_command_line_is_named(words: list[str], named: str, monkeypatch, capsys) -> None:
    assert fnkd(monkeypatch, *words) == 2
    assert named in sentence(capsys)


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        (['train', 'FOLDER', '--student', 'test_resnett', '--teacher', MODEL], 'test_resnet,'),
        (['train', 'FOLDER', '--student', MODEL, '--teacher', 'test_resnett'], 'test_resnet,'),
        (['train', 'FOLDER', *PAIR, '--student-checkpoint', 'none.pth'], 'none.pth'),
        (['train', 'FOLDER', *PAIR, '--teacher-checkpoint', 'none.pth'], 'none.pth'),
        (['train', 'FOLDER', *PAIR, '--iterations', '0'], '--iterations'),
        (['train', 'FOLDER', *PAIR, '--image-size', '0'], '--image-size'),
        (['train', 'NOWHERE', *PAIR], 'NOWHERE'),
        (['train', 'nowhere.py', '--teacher', f'timm:{MODEL}'], 'nowhere.py'),
        (['check', 'NOWHERE'], 'NOWHERE'),
        (['check', 'FOLDER/train/blue/0.jpg'], 'not a folder'),
        (['check', 'FOLDER/val/blue'], 'no class folders'),
        (['predict', 'NOWHERE', 'x.jpg'], 'NOWHERE'),
        (['export', 'NOWHERE', 'x.onnx'], 'NOWHERE'),
        (['publish', 'none.pth', 'out'], 'none.pth'),
    ],
)
def test_what_is_not_there_is_named_before_training(words, named: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    photos.folder(tmp_path / 'FOLDER', train=2, val=1)
    assert fnkd(monkeypatch, *words) in (1, 2)
    assert named in sentence(capsys)
    assert not list(tmp_path.rglob('*.pth'))


def test_without_a_network_published_weights_are_refused_in_one_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    photos.folder(tmp_path / 'FOLDER', train=2, val=1)
    assert fnkd(monkeypatch, 'train', 'FOLDER', '--student', 'resnet18', '--teacher', MODEL) == 1
    found = sentence(capsys)
    assert 'resnet18' in found and '--student-checkpoint' in found


@pytest.mark.parametrize('command', ['train', 'analyze'])
def test_without_a_network_data_that_must_be_downloaded_are_named(
    command: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    """MMPretrain downloads CIFAR when its data set is built."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError('Name or service not known')

    monkeypatch.setattr(urllib.request, 'urlopen', refuse)
    config = ROOT / 'configs' / 'cifar100' / 'plain_r20_cifar100.py'
    (weights,) = (config.parent / 'weights').glob('fnkd-r20_*')
    rest = ['--work-dir', tmp_path / 'run'] if command == 'train' else [weights, '--out', tmp_path / 'out']
    assert fnkd(monkeypatch, command, config, *rest, '--cfg-options', f'data_root={tmp_path / "cifar"}') == 1
    assert 'Name or service not known' in sentence(capsys)


def test_an_unreachable_hub_is_refused_without_trying_again(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')  # where nothing listens
    photos.folder(tmp_path / 'FOLDER', train=2, val=1)
    began = time.monotonic()
    assert fnkd(monkeypatch, 'train', 'FOLDER', '--student', 'resnet18', '--teacher', MODEL) == 1
    assert time.monotonic() - began < 10
    found = sentence(capsys)
    assert '127.0.0.1:9 does not answer' in found and '--student-checkpoint' in found
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_checkpoints_of_student_and_teacher_in_the_wrong_order_are_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    photos.folder(tmp_path / 'FOLDER', train=2, val=1)
    a, b = (timm_checkpoint(tmp_path / name, name) for name in ('test_resnet', 'test_vit'))
    pair = ['--student', 'test_resnet', '--teacher', 'test_vit']
    files = ['--student-checkpoint', b, '--teacher-checkpoint', a]
    assert fnkd(monkeypatch, 'train', 'FOLDER', *pair, *files) == 1
    found = sentence(capsys)
    assert '--student-checkpoint' in found and '--teacher-checkpoint' in found and len(found) < 300 + len(str(b))


@pytest.mark.parametrize('out', ['taken', 'taken/below', '/proc/none'])
def test_an_output_folder_that_cannot_be_made_is_named(out: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    photos.folder(tmp_path / 'FOLDER', train=2, val=1)
    (tmp_path / 'taken').write_text('mine')
    weights = timm_checkpoint(tmp_path, MODEL, num_classes=7)
    files = ['--student-checkpoint', weights, '--teacher-checkpoint', weights]
    assert fnkd(monkeypatch, 'train', 'FOLDER', *PAIR, *files, '--out', out) == 1
    assert out.split('/')[0] in sentence(capsys)
    assert (tmp_path / 'taken').read_text() == 'mine'
    plain, _ = write_configs(tmp_path, tmp_path)
    assert fnkd(monkeypatch, 'train', plain, '--work-dir', out) == 1
    assert out.split('/')[0] in sentence(capsys)


def test_check_ends_with_what_it_found(tmp_path: Path, monkeypatch, capsys) -> None:
    root = photos.folder(tmp_path / 'FOLDER', train=6, val=2)
    assert fnkd(monkeypatch, 'check', root) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('OK') and '24 photos' in last and '3 classes' in last
    (root / 'train' / 'blue' / '0.jpg').write_bytes(b'x')
    assert fnkd(monkeypatch, 'check', root) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert not last.startswith('OK') and '23 photos' in last


def test_amp_needs_a_gpu(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    config = ROOT / 'configs' / 'demo' / 'plain_digits.py'
    assert fnkd(monkeypatch, 'train', config, '--amp', '--work-dir', tmp_path) == 1
    assert '--amp' in sentence(capsys)


@pytest.mark.parametrize(
    ('option', 'meant'),
    [
        ('model.backbone.type=ResNett', 'ResNet'),
        ('model.backbone.depht=18', 'depth'),
        ('model.train_cfg.augments.0.type=Mixupp', 'Mixup'),
        ('model.head.loss.type=CrosEntropyLoss', 'CrossEntropyLoss'),
        ('optim_wrapper.type=OptimWraper', 'OptimWrapper'),
        ('optim_wrapper.optimizer.type=SDG', 'SGD'),
        ('optim_wrapper.optimizer.momentun=0.9', 'momentum'),
        ('param_scheduler.type=MultiStepLr', 'MultiStepLR'),
        ('train_cfg.max_epoch=1', 'max_epochs'),
        ('val_cfg.type=ValLop', 'ValLoop'),
        ('train_dataloader.dataset.type=NoiseImage', 'NoiseImages'),
        ('train_dataloader.dataset.pipeline.1.type=RandomFlipp', 'RandomFlip'),
        ('train_dataloader.dataset.pipeline.1.probb=0.5', 'prob'),
        ('train_dataloader.sampler.type=DefaultSamplr', 'DefaultSampler'),
        ('val_evaluator.type=Acuracy', 'Accuracy'),
        ('val_evaluator.topkk=1', 'topk'),
        ('train_dataloader.num_wrokers=1', 'num_workers'),
        ('default_hooks.checkpoint.type=CheckpontHook', 'CheckpointHook'),
        ('custom_hooks.0.momentumm=0.1', 'momentum'),
    ],
)
def test_a_misspelt_name_in_a_config_is_answered_with_its_place_and_the_right_one(
    option: str, meant: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    plain, _ = write_configs(tmp_path, tmp_path)
    assert fnkd(monkeypatch, 'train', plain, '--work-dir', tmp_path / 'work', '--cfg-options', option) == 1
    error = sentence(capsys)
    place, wrong = option.split('=')
    assert place in error and meant in error.partition('did you mean ')[2]
    assert wrong in error or place.rpartition('.')[2] in error
    assert not list(tmp_path.rglob('*.pth'))


def test_a_misspelt_name_is_answered_by_test_cache_and_analyze_too(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    plain, distilled = write_configs(tmp_path, timm_checkpoint(tmp_path, num_classes=4))
    torch.save(MODELS.build(Config.fromfile(plain).model).state_dict(), weights := tmp_path / 'w.pth')
    for words in (
        ['test', plain, weights, '--cfg-options', 'test_evaluator.type=Acuracy'],
        ['cache', distilled, '--out', 'c', '--cfg-options', 'train_dataloader.dataset.pipeline.1.type=RandomFlipp'],
        ['analyze', plain, weights, '--out', 'a', '--cfg-options', 'val_dataloader.dataset.type=NoiseImage'],
    ):
        assert fnkd(monkeypatch, *words) == 1
        error = sentence(capsys)
        assert words[-1].partition('=')[0] in error and 'did you mean' in error


def test_images_of_different_sizes_are_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    plain, _ = write_configs(tmp_path, tmp_path)
    root = photos.folder(tmp_path / 'FOLDER', train=2, val=1)
    ragged = (
        f"data = dict(type='CustomDataset', data_root={str(root / 'train')!r}, "
        "pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])\n"
        'train_dataloader.update(dataset=data, batch_size=6)\n'
    )
    plain.write_text(plain.read_text().replace('num_classes=4', 'num_classes=3') + ragged)
    assert fnkd(monkeypatch, 'train', plain, '--no-validate', '--work-dir', tmp_path / 'work') == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: images of a batch differ in size')
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize('error', [KeyError('x'), TypeError("f() got an unexpected keyword argument 'depth'")])
def test_an_error_of_what_was_built_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), explained(Config(dict(model=dict(type='ResNet', depth=18)))):
        raise error


class _Neck(nn.Module):
    """Passes its option on to a function that does not have it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        (lambda: None)(depth=depth)  # type: ignore[call-arg]


class _Head(nn.Module):
    def __init__(self, width: int = 1, *args: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_an_option_that_a_class_has_is_not_its_mistake(monkeypatch) -> None:
    monkeypatch.setitem(MODELS._module_dict, '_Neck', _Neck)
    cfg = Config(dict(model=dict(type='_Neck', depth=18)))
    with pytest.raises(TypeError, match='depth'), explained(cfg):
        MODELS.build(cfg.model)


def test_an_unknown_option_is_named_where_its_own_type_has_it(monkeypatch) -> None:
    monkeypatch.setitem(MODELS._module_dict, '_Head', _Head)
    head = dict(type='_Head', depth=18)
    cfg = Config(dict(model=dict(backbone=dict(type='ResNet', depth=18), head=head)))
    with pytest.raises(SetupError) as caught, explained(cfg):
        MODELS.build(cfg.model.head)
    message = str(caught.value)
    assert 'model.head.depth' in message and 'backbone' not in message and 'kwargs' not in message


def test_a_hook_of_the_users_that_lacks_an_argument_keeps_its_traceback(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain, _ = write_configs(tmp_path, tmp_path)
    monkeypatch.setattr(CheckpointHook, 'after_train_iter', lambda hook, runner: None)
    monkeypatch.setattr(sys, 'argv', ['fnkd', 'train', str(plain), '--work-dir', str(tmp_path / 'work')])
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        fnkd_cli.main()
    forget_run()


@pytest.mark.parametrize(
    ('about', 'named'),
    [
        (dict(model='test_resnett'), 'test_resnett'),
        (dict(classes=['a', 'b', 'c']), 'another shape'),
        (dict(image_sise=64), 'image_sise'),
        (dict(), 'cannot be read'),
    ],
)
def test_a_students_file_that_does_not_fit_is_named(about, named: str, tmp_path: Path, monkeypatch, capsys) -> None:
    file = tmp_path / 'student.safetensors'
    right = dict(model=MODEL, classes=['a', 'b'], image_size=64, mean=[0.5] * 3, std=[0.5] * 3)
    safetensors.torch.save_file(timm.create_model(MODEL, num_classes=2).state_dict(), file)
    if not about:
        file.write_bytes(file.read_bytes()[:500])
    file.with_suffix('.json').write_text(json.dumps({**right, **about}))
    Image.new('RGB', (64, 64)).save(tmp_path / 'photo.jpg')
    assert fnkd(monkeypatch, 'predict', file, tmp_path / 'photo.jpg') == 1
    assert named in sentence(capsys)


def test_photos_that_cannot_be_read_do_not_hide_the_others(tmp_path: Path, monkeypatch, capsys) -> None:
    file = tmp_path / 'student.safetensors'
    about = dict(model=MODEL, classes=['a', 'b'], image_size=64, mean=[0.5] * 3, std=[0.5] * 3)
    safetensors.torch.save_file(timm.create_model(MODEL, num_classes=2).state_dict(), file)
    file.with_suffix('.json').write_text(json.dumps(about))
    photos = [tmp_path / f'{name}.png' for name in 'abcd']
    for photo in (photos[0], photos[3]):
        Image.new('RGB', (64, 64)).save(photo)
    photos[1].write_bytes(photos[0].read_bytes()[:40])
    assert fnkd(monkeypatch, 'predict', file, photos[3]) == 0
    alone = capsys.readouterr().out
    assert fnkd(monkeypatch, 'predict', file, *photos) == 1
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == [str(photos[0]), str(photos[3])]
    assert shown.out.splitlines()[1] == alone.rstrip()
    assert [str(photo) in line for photo, line in zip(photos[1:3], shown.err.splitlines(), strict=True)] == [True] * 2
    assert fnkd(monkeypatch, 'predict', file, *photos, '--json') == 1
    rows = json.loads(capsys.readouterr().out)
    assert [('error' in row, row['photo']) for row in rows] == [
        (number in (1, 2), str(photo)) for number, photo in enumerate(photos)
    ]
    assert fnkd(monkeypatch, 'predict', file, photos[1], '--json') == 1


def test_the_terminal_shows_progress_and_results_the_file_all(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    plain, _ = write_configs(tmp_path, tmp_path)
    assert (
        fnkd(monkeypatch, 'train', plain, '--work-dir', tmp_path / 'work', '--cfg-options', 'train_cfg.max_epochs=1')
        == 0
    )
    shown = capsys.readouterr()
    (log,) = (tmp_path / 'work').rglob('*.log')
    assert all(fact in log.read_text() for fact in ('Epoch(train)', 'optim_wrapper', 'before_train', 'sys.platform'))
    text = shown.out + shown.err
    assert 'INFO' not in text and 'optim_wrapper' not in text and 'before_train' not in text
    assert '16 images' in text and 'epoch_1.pth' in text and 'accuracy/top1' in text
    assert len(text.splitlines()) < 20
    (line,) = (line for line in shown.out.splitlines() if line.startswith('work: 1/4'))
    assert 'loss' in line and 'left' in line


def test_doctor_names_versions(monkeypatch, capsys) -> None:
    assert fnkd(monkeypatch, 'doctor') == 0
    assert torch.__version__.split('+')[0] in capsys.readouterr().out


@pytest.mark.parametrize('words', [['doctor'], ['publish', 'x.pth', 'out']])
def test_an_interruption_is_one_word(words: list[str], monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, 'report', interrupt)
    monkeypatch.setattr(publish, 'main', interrupt)
    assert fnkd(monkeypatch, *words) == 130
    assert capsys.readouterr().err.split() == ['stopped']


@pytest.mark.parametrize('words', [['--help'], ['trian'], ['train', 'x.py', '--hepl']])
def test_help_and_mistakes_import_neither_torch_nor_the_package(words: list[str]) -> None:
    """They take 0.3 s of an idle core; of a busy one, 5 s are generous, and less than importing torch took there."""
    code = (
        'import sys, fnkd_cli\n'
        'try:\n    fnkd_cli.main()\n'
        'finally:\n    assert not {"torch", "timm", "fnkd_plugin", "mmengine"} & set(sys.modules)\n'
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, '-c', code, *words], cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - began < 5
    assert 'Traceback' not in done.stderr
    assert done.returncode == (0 if words == ['--help'] else 2)


def test_help_of_the_module_does_not_import_torch() -> None:
    command = [sys.executable, '-X', 'importtime', '-m', 'fnkd_plugin', '--help']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'compare' in done.stdout
    assert not {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()} & {'torch', 'mmengine'}


@pytest.mark.slow
def test_the_module_trains_a_config(tmp_path: Path) -> None:
    """Its package is imported before the command is known, and registers when work starts."""
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    command = [
        sys.executable,
        '-m',
        'fnkd_plugin',
        'train',
        'configs/demo/plain_digits.py',
        '--work-dir',
        str(tmp_path),
    ]
    done = subprocess.run([*command, '--cfg-options', *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'iter_2.pth').is_file()
