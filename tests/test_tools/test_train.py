"""``tools/train.py`` and ``tools/test.py`` with their flags."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

from tests.helpers import assert_same_weights, timm_checkpoint
from tests.test_tools.configs import PURE_PYTHON, write_configs
from tests.test_tools.processes import ROOT, Finished, Tools

ONE_EPOCH = 'train_cfg.max_epochs=1'
STOCK_TEST = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'test.py'


@pytest.fixture
def configs(tmp_path: Path) -> tuple[Path, Path]:
    return write_configs(tmp_path, timm_checkpoint(tmp_path))


def accuracy(output: str) -> float:
    found = re.findall(r'accuracy/top1:? +([\d.]+)', output)
    assert found, output
    return float(found[-1])


def assert_error(finished: Finished, *facts: str) -> None:
    """It ended with one line that holds these names and numbers, and without a traceback."""
    assert finished.code == 1, finished.output
    assert 'Traceback' not in finished.output, finished.output
    last = finished.output.strip().splitlines()[-1]
    assert last.startswith('error: '), finished.output
    assert all(fact in last for fact in facts), last


def _trained_weights(config: Path, num_classes: int) -> dict:
    model = Config.fromfile(config).model
    model.head.num_classes = num_classes
    return MODELS.build(model).state_dict()


@pytest.mark.upstream
def test_a_distilled_student_is_tested_with_and_without_the_plugin(
    tools: Tools, configs: tuple[Path, Path], tmp_path: Path
) -> None:
    _, distilled = configs
    work = tmp_path / 'work'
    trained = tools.run('train.py', distilled, '--work-dir', work, '--cfg-options', ONE_EPOCH)
    assert trained.code == 0, trained.output
    assert 'loss_soft' in trained.output
    assert 'NoiseImages: 4 classes, 16 images' in trained.output
    assert f'python -m fnkd_plugin test {work}/plain_distilled.py {work}/epoch_1.pth' in trained.output
    next(tmp_path.glob('test_resnet*.pth')).unlink()  # the teacher's

    options = ['--cfg-options', 'test_dataloader.batch_size=3']
    flags = ['--local-rank', '0', '--launcher', 'none', '--work-dir', tmp_path / 'test']
    tested = tools.run('test.py', *flags, distilled, work / 'epoch_1.pth', *options)
    assert tested.code == 0, tested.output

    plain = work / 'plain_distilled.py'
    assert 'fnkd_plugin' not in plain.read_text()
    run = (
        "import sys, runpy; sys.modules['fnkd_plugin'] = None; sys.argv[:1] = []; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    stock = subprocess.run(
        [sys.executable, '-c', run, STOCK_TEST, plain, work / 'epoch_1.pth', '--work-dir', tmp_path / 'stock'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        cwd=tmp_path,
    )
    assert stock.returncode == 0, stock.stderr
    assert accuracy(stock.stdout + stock.stderr) == accuracy(tested.output)
    assert accuracy(trained.output) == accuracy(tested.output)


@pytest.mark.upstream
def test_options_for_the_plain_model_reach_the_student(
    tools: Tools, configs: tuple[Path, Path], tmp_path: Path
) -> None:
    _, distilled = configs
    options = [
        ONE_EPOCH,
        'model.backbone.depth=34',
        'model.head.loss.type=LabelSmoothLoss',
        'model.head.loss.label_smooth_val=0.1',
        'model.head.soft_loss.loss_weight=2',
        'model.head.hard_weight=0.5',
        'model.teacher.execution.channels_last=True',
        'train_dataloader.num_workers=1',
        'optim_wrapper.accumulative_counts=2',
        'default_hooks.reproducible=None',
    ]
    flags = ['--no-validate', '--no-persistent-workers', '--no-pin-memory']
    work = tmp_path / 'work'
    done = tools.run('train.py', distilled, '--work-dir', work, *flags, '--cfg-options', *options)
    assert done.code == 0, done.output
    assert 'accuracy' not in done.output
    dumped = (work / 'distilled.py').read_text()
    assert 'ReproducibleHook' not in dumped
    assert 'persistent_workers=False' in dumped
    weights = torch.load(work / 'epoch_1.pth', weights_only=True)['state_dict']
    assert 'backbone.layer3.5.conv1.weight' in weights


def test_load_from_a_distilled_student_and_the_teachers_result(
    tools: Tools, configs: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, distilled = configs
    flags = ['--cfg-options', ONE_EPOCH]
    first = tools.run('train.py', distilled, '--evaluate-teacher', '--work-dir', tmp_path / 'a', *flags)
    assert first.code == 0, first.output
    assert re.search(r'Teacher TimmTeacher\(test_resnet\) on the validation set: accuracy/top1 [\d.]+', first.output)
    assert first.output.index('on the validation set') < first.output.index('Epoch(train)')
    second = tools.run(
        'train.py', plain, '--work-dir', tmp_path / 'b', *flags, f'load_from={tmp_path / "a" / "epoch_1.pth"}'
    )
    assert second.code == 0, second.output
    assert 'do not match exactly' not in second.output


def test_auto_scale_lr(tools: Tools, configs: tuple[Path, Path], tmp_path: Path) -> None:
    plain, _ = configs
    assert_error(tools.run('train.py', plain, '--auto-scale-lr'), 'base_batch_size')
    options = ['--cfg-options', ONE_EPOCH, 'auto_scale_lr.base_batch_size=8']
    done = tools.run('train.py', plain, '--auto-scale-lr', '--work-dir', tmp_path / 'work', *options)
    assert done.code == 0, done.output
    assert 'Scaling the original LR by 0.5' in done.output
    assert 'lr: 2.5000e-02' in done.output


@pytest.mark.upstream
def test_what_does_not_fit_ends_in_one_line(tools: Tools, configs: tuple[Path, Path], tmp_path: Path) -> None:
    plain, distilled = configs
    work = ['--work-dir', tmp_path / 'work']
    torch.save(torch.nn.Linear, tmp_path / 'object.pth')

    def train(*args: object) -> Finished:
        return tools.run('train.py', args[0], *work, *args[1:])

    assert_error(train(tmp_path / 'none.py'), 'none.py')
    assert_error(train(plain, '--evaluate-teacher'), '--evaluate-teacher', 'teacher')
    (tmp_path / 'empty.py').write_text('')
    assert_error(train(tmp_path / 'empty.py'), 'model')
    assert_error(tools.run('test.py', tmp_path / 'empty.py', 'x.pth'), 'model')
    (tmp_path / 'no_data.py').write_text('model = dict(type="ImageClassifier")\n')
    assert_error(tools.run('test.py', tmp_path / 'no_data.py', 'x.pth'), 'test_dataloader')
    if not torch.cuda.is_available():
        assert_error(train(plain, '--amp'), '--amp', 'GPU')
        assert_error(train(plain, '--launcher', 'slurm'), '--launcher slurm', 'GPUs')
    teacher = 'model.teacher.checkpoint=' + str(tmp_path / 'no.pth')
    assert_error(train(distilled, '--cfg-options', teacher), 'no.pth')
    wrong = 'model.teacher.model=test_resnett'
    assert_error(train(distilled, '--cfg-options', wrong), 'test_resnett', ' test_resnet,')
    assert_error(train(plain, '--resume', tmp_path / 'object.pth'), 'object.pth')
    assert_error(tools.run('test.py', tmp_path / 'none.py', 'x.pth'), 'none.py')
    assert_error(tools.run('test.py', plain, tmp_path / 'no.pth', *work), 'no.pth')
    torch.save({'state_dict': {'other.weight': torch.zeros(1)}}, tmp_path / 'other.pth')
    other = tmp_path / 'other.pth'
    assert_error(tools.run('test.py', plain, other, *work), 'other.pth', '1 unknown (other.weight)')
    assert_error(train(plain, '--cfg-options', f'load_from={other}'), 'other.pth', '1 unknown (other.weight)')
    three = ['--cfg-options', 'model.head.num_classes=3']
    assert_error(train(plain, *three), 'train_dataloader', '4 classes', 'model 3')
    torch.save({'state_dict': _trained_weights(plain, num_classes=3)}, tmp_path / 'three.pth')
    tested = tools.run('test.py', plain, tmp_path / 'three.pth', *work, *three)
    assert_error(tested, 'test_dataloader', '4 classes', 'model 3')
    for kind in ('CUB', 'CUB2010'):
        dataset = f"train_dataloader['dataset'] = dict(type='{kind}', data_root='nowhere', pipeline=pipeline)\n"
        (tmp_path / 'birds.py').write_text(plain.read_text() + dataset)
        assert_error(train(tmp_path / 'birds.py'), 'nowhere', kind)
        there = ['--cfg-options', f'train_dataloader.dataset.data_root={tmp_path}']
        assert_error(train(tmp_path / 'birds.py', *there), str(tmp_path))


def test_tools_run_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    run = (
        'import runpy, sys\n'
        'for tool in sys.argv[1:]:\n'
        '    before = list(sys.path)\n'
        "    runpy.run_path(tool, run_name='tool')\n"
        '    print(sys.path[0])\n'
        '    sys.path[:] = before\n'
    )
    tools = [ROOT / 'tools' / name for name in ('train.py', 'test.py', 'benchmark.py')]
    done = subprocess.run([sys.executable, '-c', run, *tools], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count(str(ROOT)) == len(tools)


def test_a_variable_of_the_file_is_replaced_for_both_tools(tools: Tools, tmp_path: Path) -> None:
    plain, _ = write_configs(tmp_path, timm_checkpoint(tmp_path))
    text = plain.read_text().replace('pipeline = [', "data_root = 'nowhere'\npipeline = [", 1)
    plain.write_text(text.replace("type='NoiseImages',", "type='NoiseImages', data_root=data_root,"))
    work = tmp_path / 'work'
    options = ['--work-dir', work, '--cfg-options', f'data_root={tmp_path}', ONE_EPOCH]
    done = tools.run('train.py', plain, *options)
    assert done.code == 0, done.output
    tested = tools.run('test.py', plain, work / 'epoch_1.pth', *options[:-1])
    assert tested.code == 0, tested.output
    assert_error(tools.run('test.py', plain, work / 'epoch_1.pth'), 'nowhere')


@pytest.mark.upstream
@pytest.mark.parametrize('pure', [False, True])
def test_a_mixed_run_is_repeated_by_its_dumped_config_alone(pure: bool, tools: Tools, tmp_path: Path) -> None:
    teacher = timm_checkpoint(tmp_path)
    plain, _ = write_configs(tmp_path, teacher)
    if pure:
        plain.write_text(PURE_PYTHON)
    flags = [
        '--teacher',
        'timm:test_resnet',
        '--teacher-checkpoint',
        teacher,
        '--distill',
        'fnkd',
        '--distill-cfg',
        'tau=2',
    ]
    options = [
        '--label-smoothing',
        'lsr',
        '--cfg-options',
        ONE_EPOCH,
        'randomness.seed=3',
        'model.backbone.base_channels=6',
    ]
    options.append('model.head.in_channels=48')
    first, second = tmp_path / 'first', tmp_path / 'second'
    mixed = tools.run('train.py', plain, '--work-dir', first, *flags, *options)
    assert mixed.code == 0, mixed.output
    assert 'loss_soft' in mixed.output
    again = tools.run('train.py', first / 'plain.py', '--work-dir', second)
    assert again.code == 0, again.output
    weights = [torch.load(folder / 'epoch_1.pth', weights_only=True)['state_dict'] for folder in (first, second)]
    assert_same_weights(*weights)
    assert weights[0]['head.fc.weight'].shape == (4, 48)


@pytest.mark.upstream
def test_what_cannot_be_mixed_ends_in_one_line(tools: Tools, configs: tuple[Path, Path], tmp_path: Path) -> None:
    plain, distilled = configs
    teacher = ['--teacher', 'timm:test_resnet', '--teacher-checkpoint', timm_checkpoint(tmp_path)]

    def train(*args: object) -> Finished:
        return tools.run('train.py', *args, '--work-dir', tmp_path / 'work')

    assert_error(train(distilled, *teacher), 'distill')
    assert_error(train(plain, '--distill', 'kd'), '--distill', '--teacher')
    assert_error(train(plain, '--distill-cfg', 'tau=8'), '--distill', '--teacher')
    assert_error(train(plain, '--label-smoothing-cfg', 'eps=0.2'), '--label-smoothing-cfg')
    assert_error(train(plain, *teacher, '--distill-cfg', 'tua=8'), 'tua')
    assert_error(train(plain, '--teacher', 'timm:test_resnett'), 'test_resnett', ' test_resnet,')
    assert_error(train(plain, '--label-smoothing', 'alsr'), 'groups')
    assert_error(train('mmpretrain::resnet/none.py', *teacher), 'mmpretrain::resnet/none')
    shipped = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
    assert_error(train(shipped, *teacher), 'data/imagenet')
    unknown = train(plain, *teacher, '--distill', 'kdd')
    assert unknown.code == 2 and "'kdd'" in unknown.output
