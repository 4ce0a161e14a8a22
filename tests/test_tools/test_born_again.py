"""Self-distillation, generation after generation, by one config."""

import re
from pathlib import Path

import pytest
import torch

from tests.test_tools.configs import PLAIN
from tests.test_tools.processes import Tools

FIRST = """
_base_ = 'plain.py'
custom_imports = dict(imports=['fnkd_plugin', 'tests.test_tools.images'], allow_failed_imports=False)
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
model = dict(_delete_=True, type='TimmStudent', model='test_resnet', num_classes=4)
custom_hooks = []
"""
NEXT = """
_base_ = 'first.py'
teacher_checkpoint = 'nowhere.pth'
model = dict(
    _delete_=True, type='Distiller', student={{_base_.model}},
    teacher=dict(type='TimmTeacher', model='test_resnet', checkpoint=teacher_checkpoint),
    head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss')))
"""
_OF_THE_STUDENT = re.compile(r'Epoch\(val\) \[3\].*accuracy/top1: ([\d.]+)  accuracy/top2: ([\d.]+)')
_OF_THE_TEACHER = re.compile(r'on the validation set: accuracy/top1 ([\d.]+), accuracy/top2 ([\d.]+)')


def _accuracies(pattern: re.Pattern, output: str) -> list[float]:
    found = pattern.search(output)
    assert found, output
    return [float(value) for value in found.groups()]


@pytest.mark.upstream
def test_each_generation_learns_from_the_one_before(tools: Tools, tmp_path: Path) -> None:
    for name, text in dict(plain=PLAIN, first=FIRST, next=NEXT).items():
        (tmp_path / f'{name}.py').write_text(text)
    done = tools.run('train.py', tmp_path / 'first.py', '--work-dir', tmp_path / '1')
    assert done.code == 0, done.output
    own = [_accuracies(_OF_THE_STUDENT, done.output)]
    for generation in (2, 3):
        before = tmp_path / str(generation - 1) / 'epoch_3.pth'
        options = ['--evaluate-teacher', '--cfg-options', f'teacher_checkpoint={before}']
        done = tools.run('train.py', tmp_path / 'next.py', '--work-dir', tmp_path / str(generation), *options)
        assert done.code == 0, done.output
        assert _accuracies(_OF_THE_TEACHER, done.output) == pytest.approx(own[-1], abs=0.01)
        own.append(_accuracies(_OF_THE_STUDENT, done.output))
    states = [torch.load(tmp_path / str(g) / 'epoch_3.pth', weights_only=True)['state_dict'] for g in (1, 2, 3)]
    assert list(states[0]) == list(states[1]) == list(states[2])
    assert not torch.equal(states[1]['fc.weight'], states[2]['fc.weight']), 'another teacher, another student'
