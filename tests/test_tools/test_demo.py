import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')
pytest.importorskip('torchmetrics')

pytestmark = pytest.mark.slow
REPO = Path(__file__).resolve().parents[2]
TINY = [
    *('--seeds', '1', '--trials', '2', '--cfg-options'),
    *('train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'train_dataloader.batch_size=10'),
]


def _demo(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'COLUMNS': '100'}
    environment.pop('PYTHONPATH', None)  # as from a checkout that is not installed
    command = [sys.executable, str(REPO / 'tools' / 'demo.py'), *arguments]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)


def test_demo_end_to_end(tmp_path: Path) -> None:
    earlier = tmp_path / 'demo' / 'precious.txt'
    earlier.parent.mkdir()
    earlier.write_text('mine')
    done = _demo('--out', str(tmp_path / 'demo'), *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert earlier.read_text() == 'mine'
    assert os.listdir(earlier.parent) == ['precious.txt']
    out = tmp_path / 'demo_2'
    runs = json.loads((out / 'results.json').read_text())['runs']
    # The teacher, and two trials and a final training of each method; trials never see the test split.
    assert {name.split('_')[0] for name in runs} == {'teacher', 'plain', 'lsr', 'kd', 'fnkd'} and len(runs) == 13
    splits = {name: run['options']['val_dataloader.dataset.split'] for name, run in runs.items()}
    assert splits == {name: 'val' if 'trial' in name else 'test' for name in runs}
    assert (out / 'demo.png').stat().st_size > 10_000
    student = torch.load(out / 'fnkd_student.pth', weights_only=True)['state_dict']
    assert not any('teacher' in key for key in student)
    for method in ('plain', 'LSR', 'KD', 'FNKD', 'teacher'):
        assert method in done.stdout


def test_a_failed_training_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    done = _demo('--out', str(tmp_path / 'demo'), *TINY, 'train_dataloader.dataset.split=nowhere')
    assert done.returncode == 1
    assert "SetupError: Digits: split 'nowhere'" in done.stderr
    assert 'Traceback' not in done.stderr
    assert str(tmp_path / 'demo' / 'runs' / 'logs') in done.stderr.replace('\n', '')
