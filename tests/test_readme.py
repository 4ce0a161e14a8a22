"""The README's loops without MMPretrain run as they stand, where no OpenMMLab package is installed, and agree."""

import pytest

from tests.test_stack import run_bare

BOTH_LOOPS = """
import copy, re
from pathlib import Path
import torch
from torch import nn

section = Path('README.md').read_text().split('## Without MMPretrain')[1].split('\\n## ')[0]
with_task, on_tensors = re.findall('```python\\n(.*?)```', section, re.DOTALL)
assert 'FNKDTask' in with_task and 'scale_by_feature_norm' in on_tensors

def model():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(backbone, nn.Linear(32, 4))

torch.manual_seed(0)
teacher, start = model(), model()
loader = [(6.1 * torch.randn(4, 3, 32, 32), torch.arange(4)) for _ in range(3)]
norms = teacher[0](loader[0][0]).norm(dim=1)
assert norms.min() < 8 < norms.max(), norms

student = copy.deepcopy(start)
exec(with_task, dict(student=student, teacher=teacher, loader=loader))

other = copy.deepcopy(start)
names = dict(zip(('student_backbone', 'student_fc'), other)) | dict(zip(('teacher_backbone', 'teacher_fc'), teacher))
exec(on_tensors, dict(names, loader=loader, optimizer=torch.optim.SGD(other.parameters(), lr=0.1)))

assert (student[1].weight - start[1].weight).norm() > 0.1
for found, expected in zip(student.parameters(), other.parameters(), strict=True):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
"""


@pytest.mark.upstream
def test_both_loops_run_and_agree() -> None:
    done = run_bare(BOTH_LOOPS)
    assert done.returncode == 0, done.stderr[-2000:]
