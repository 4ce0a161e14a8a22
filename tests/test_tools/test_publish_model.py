from pathlib import Path

import torch

from tests.helpers import build, timm_student
from tests.test_tools.processes import Tools


def test_publishes_and_prints_the_file(tools: Tools, tmp_path: Path) -> None:
    torch.save(dict(state_dict=build(timm_student()).state_dict(), optimizer=dict(lr=1.0)), tmp_path / 'epoch_3.pth')
    done = tools.run('publish_model.py', tmp_path / 'epoch_3.pth', tmp_path / 'bird', '--timm')
    assert done.code == 0, done.output
    path = Path(done.output.splitlines()[-1])
    assert path.parent == tmp_path and path.name.startswith('bird_')
    assert set(torch.load(path, weights_only=True)) == {'state_dict', 'meta'}


def test_an_error_is_one_line(tools: Tools, tmp_path: Path) -> None:
    torch.save(dict(state_dict=dict(w=torch.ones(1))), tmp_path / 'x.pth')
    done = tools.run('publish_model.py', tmp_path / 'x.pth', tmp_path, '--ema')
    assert done.code == 1
    assert done.output.splitlines()[-1].startswith('error: Checkpoint') and 'Traceback' not in done.output
    assert [p.name for p in tmp_path.iterdir()] == ['x.pth']
