"""Two processes on CPUs, through the shell scripts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import timm_checkpoint
from tests.test_tools.configs import write_configs
from tests.test_tools.processes import ROOT, Tools

# Batches depend on the number of processes in order only; no batch statistics, nothing drawn per process.
EQUAL = """
student = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer', img_size=16, patch_size=8,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)),
    head=dict(type='VisionTransformerClsHead', num_classes=4, in_channels=16))
model = dict(_delete_=True, type='Distiller', student=student,
    teacher=dict(type='TimmTeacher', model='test_vit', img_size=16, checkpoint='TEACHER'),
    head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau='auto')))
custom_hooks = []
randomness = dict(seed=3)
"""


def _config(folder: Path) -> Path:
    teacher = timm_checkpoint(folder, 'test_vit', img_size=16)
    _, distilled = write_configs(folder, teacher)
    text = distilled.read_text()
    distilled.write_text(text[: text.index('model = dict(')] + EQUAL.replace('TEACHER', str(teacher)))
    return distilled


def _script(name: str, *args: object, **env: str) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHON': sys.executable, 'PORT': '29561', 'OMP_NUM_THREADS': '1', **env}
    env.pop('PYTHONPATH', None)  # as from a checkout that is not installed
    command = ['bash', str(ROOT / 'tools' / name), *map(str, args)]
    return subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='on CPUs')
def test_two_processes_equal_one(tools: Tools, tmp_path: Path) -> None:
    config = _config(tmp_path)
    options = ['--cfg-options', 'train_cfg.max_epochs=2']
    one = tools.run('train.py', config, '--work-dir', tmp_path / 'one', *options)
    assert one.code == 0, one.output
    two = _script('dist_train.sh', config, 2, '--work-dir', tmp_path / 'two', *options, 'train_dataloader.batch_size=2')
    assert two.returncode == 0, two.stdout
    first, second = (torch.load(tmp_path / n / 'epoch_2.pth', weights_only=True) for n in ('one', 'two'))
    assert first['meta']['iter'] == second['meta']['iter'] == 8
    assert list(first['state_dict']) == list(second['state_dict'])
    for key, weight in first['state_dict'].items():
        torch.testing.assert_close(second['state_dict'][key], weight, rtol=0, atol=1e-6)

    tested = _script('dist_test.sh', config, tmp_path / 'two' / 'epoch_2.pth', 2, '--work-dir', tmp_path / 'test')
    assert tested.returncode == 0, tested.stdout
    alone = tools.run('test.py', config, tmp_path / 'two' / 'epoch_2.pth', '--work-dir', tmp_path / 'alone')
    one, two = (re.search(r'accuracy/top1 +([\d.]+)', output) for output in (alone.output, tested.stdout))
    assert one is not None and two is not None and one[1] == two[1]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='on CPUs')
def test_a_killed_process_ends_the_job_which_resumes_exactly(tools: Tools, tmp_path: Path) -> None:
    config = _config(tmp_path)
    hook = "custom_imports['imports'].append('tests.test_tools.killing')\ncustom_hooks = [dict(type='Kill')]\n"
    config.write_text(config.read_text() + hook)
    options = ['--cfg-options', 'train_cfg.max_epochs=2', 'train_dataloader.batch_size=2']
    killed = _script(
        'dist_train.sh', config, 2, '--work-dir', tmp_path / 'cut', *options, KILL_AFTER='6', KILL_RANK='1'
    )
    assert killed.returncode == 1
    assert 'train.py FAILED' in killed.stdout and 'Signal 9 (SIGKILL)' in killed.stdout
    assert (tmp_path / 'cut' / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    resumed = _script('dist_train.sh', config, 2, '--work-dir', tmp_path / 'cut', '--resume', *options)
    assert resumed.returncode == 0, resumed.stdout
    one = tools.run('train.py', config, '--work-dir', tmp_path / 'one', *options[:2])
    assert one.code == 0, one.output
    first, second = (torch.load(tmp_path / n / 'epoch_2.pth', weights_only=True) for n in ('one', 'cut'))
    for key, weight in first['state_dict'].items():
        torch.testing.assert_close(second['state_dict'][key], weight, rtol=0, atol=1e-6)


def test_slurm_script_passes_its_arguments(tmp_path: Path) -> None:
    fake = tmp_path / 'srun'
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'PYTHON': 'py', 'GPUS': '2', 'GPUS_PER_NODE': '1'}
    env['SRUN_ARGS'] = '--qos high'
    command = ['bash', ROOT / 'tools' / 'slurm_train.sh', 'part', 'a job', 'my config.py', 'work dir', '--amp']
    passed = subprocess.run(command, env=env, text=True, capture_output=True, check=True).stdout.splitlines()
    assert passed[:2] == ['-p', 'part']
    assert {'--job-name=a job', '--gres=gpu:1', '--ntasks=2', '--ntasks-per-node=1', '--qos', 'high'} <= set(passed)
    tail = ['my config.py', '--work-dir', 'work dir', '--launcher', 'slurm', '--amp']
    assert passed[-len(tail) :] == tail
    assert Path(passed[-len(tail) - 1]).samefile(ROOT / 'tools' / 'train.py')
