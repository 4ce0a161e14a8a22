import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from tests.test_cli import photos

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')
pytest.importorskip('torchmetrics')

pytestmark = pytest.mark.slow
REPO = Path(__file__).resolve().parents[2]
TINY = [
    *('--seeds', '1', '--trials', '2', '--cfg-options'),
    *('train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'train_dataloader.batch_size=10'),
]


def _demo(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'COLUMNS': '100'}
    for name in ('PYTHONPATH', 'FNKD_DATA', 'FNKD_WEIGHTS'):  # as from a checkout that is not installed, without photos
        environment.pop(name, None)
    command = [sys.executable, str(REPO / 'tools' / 'demo.py'), *arguments]
    return subprocess.run(command, cwd=REPO, env=environment | variables, capture_output=True, text=True)


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


@pytest.mark.parametrize(('options', 'named'), [((), 'images.tar is missing'), (('--trials', '2'), '--trials')])
def test_a_demo_on_photos_without_their_files_or_with_options_of_digits_says_so(
    options: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    done = _demo('--out', str(tmp_path / 'demo'), *options, FNKD_DATA=str(tmp_path), FNKD_WEIGHTS=str(tmp_path))
    assert done.returncode == 1 and named in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'demo').exists()


def test_with_photos_the_demo_is_about_birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On made-up photos in the files of CUB-200-2010."""
    monkeypatch.syspath_prepend(str(REPO / 'tools'))
    import demo_birds

    source, data = tmp_path / 'images', tmp_path / 'data' / 'cub200_2010'
    data.mkdir(parents=True)
    for seed, name in enumerate(('1.Amber_Gull', '2.Blue_Gull', '3.Tern')):
        for i in range(6):
            photos.photo(source / name / f'{i}.jpg', (80 * seed, 90, 60), 10 * seed + i)
    paths = sorted(path.relative_to(source).as_posix() for path in source.rglob('*.jpg'))
    for file, chosen in (('train.txt', paths[::2]), ('test.txt', paths[1::2])):
        (data / file).write_text(''.join(f'{path} 0\n' for path in chosen))
    with tarfile.open(data / 'images.tar', 'w') as archive:
        archive.add(source, 'images')
    weights = timm.create_model('test_resnet').state_dict()
    safetensors.torch.save_file(weights, tmp_path / 'test_resnet.fp16.safetensors')
    for name, value in dict(STUDENT='test_resnet', TEACHER='test_resnet', PIXELS=32, ITERATIONS=2).items():
        monkeypatch.setattr(demo_birds, name, value)
    monkeypatch.delenv('FNKD_DATA', raising=False)
    assert not demo_birds.wanted()
    monkeypatch.setenv('FNKD_DATA', str(tmp_path / 'data'))
    monkeypatch.setenv('FNKD_WEIGHTS', str(tmp_path))
    assert demo_birds.wanted() and not demo_birds.missing()
    files = demo_birds.run(tmp_path / 'out', seeds=1)
    assert all(path.exists() for path in files.values())
    found = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert found['classes'] == 3 and found['photos'] == dict(train=9, val=9)
