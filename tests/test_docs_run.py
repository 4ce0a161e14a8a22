"""The shell commands of README.md and docs/ are run, page by page, in a folder of tiny made-up files."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

import fnkd_cli
from tests.helpers import timm_checkpoint
from tests.test_cli import photos
from tests.test_docs import PAGES, ROOT, commands_of
from tests.test_tools.configs import DISTILLED, PLAIN
from tests.test_tools.processes import Tools, forget_run

NOT_RUN = {
    'pip install': 'tests/test_wheel.py installs the wheel',
    'mim': 'needs a setuptools older than ours; what it runs is tools/train.py and tools/test.py',
    'make': 'tests/test_tools/test_demo.py; the other is the tests',
    'tools/dist_train.sh': 'tests/test_tools/test_distributed.py',
    'tools/slurm_train.sh': 'needs Slurm',
    'python tools/sweep.py': 'takes hours; tests/test_tools/test_sweep.py',
    'python tools/reproduce.py': 'takes hours; tests/test_tools/test_experiments',
    'python tools/benchmark.py': 'takes minutes; tests/test_tools/test_benchmark.py',
    'python tools/analyze.py configs/cifar100': 'needs the files of CIFAR-100; test_docs.py checks its numbers',
    'python tools/train.py CONFIG.py --compile': 'compiles for a minute; tests/test_mm/test_hooks/test_compile_hook.py',
}
"""Commands by how they begin, and why or where else they are run."""

MODEL = 'test_resnet'
REPLACED = {
    'resnet18': MODEL,
    'resnet50': MODEL,
    'timm:resnet50': f'timm:{MODEL}',
    'timm:resnet152': f'timm:{MODEL}',
    'work_dirs/birds_resnet18/fnkd': f'work_dirs/birds_{MODEL}/fnkd',
    'work_dirs/birds_resnet18/fnkd.py': f'work_dirs/birds_{MODEL}/fnkd.py',
    'CONFIG': 'my_plain.py',
    'DISTILLED_CONFIG': 'my_config.py',
    'CHECKPOINT': 'student.pth',
    'FILE': 'teacher.pth',
}
"""Networks that would be downloaded, and names that stand for the reader's."""
GROUPS = {'cub': 'groups.json', 'groups=cub': 'groups=groups.json'}
"""Those of the made-up classes, for the made-up configs."""

WEIGHTS = ['--student-checkpoint', 'seven.pth', '--teacher-checkpoint', 'seven.pth']
FEW = ['train_dataloader.batch_size=4', 'train_dataloader.dataset.indices=8', 'val_dataloader.dataset.indices=8']
ADDED = {
    'fnkd train birds': [*WEIGHTS, '--image-size', '32', '--iterations', '5'],
    'fnkd compare birds': [*WEIGHTS, '--image-size', '32', '--iterations', '5', '--seeds', '1'],
    'python tools/train.py configs/cub2010': ['--cfg-options', *FEW],
    'python tools/analyze.py configs/cub2010': ['--cfg-options', 'train_dataloader.dataset.indices=20'],
    'fnkd train configs/demo/plain_digits.py': ['--cfg-options', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4'],
}
"""Arguments that make a command short, by how it begins."""

REAL_FILES = {'configs/cub2010': ('FNKD_DATA', 'FNKD_WEIGHTS')}
"""The environment variables that name the files of these configs."""

PLAIN_ON_PAGE = {'get_started': 'my_config.py'}
"""Elsewhere a file of this name is a distilled config."""


def _begins(command: str, table: dict) -> str | None:
    return next((begin for begin in table if command.startswith(begin)), None)


def _sandbox(folder: Path, page: str) -> None:
    photos.folder(folder / 'birds', train=4, val=3)
    for name in ('photo.jpg', 'another.jpg'):
        photos.photo(folder / name, (30, 60, 200), seed=1)
    shutil.move(timm_checkpoint(folder, MODEL, num_classes=7), folder / 'seven.pth')
    shutil.move(timm_checkpoint(folder, MODEL, num_classes=4), folder / 'teacher.pth')
    plain = PLAIN.replace('custom_hooks', '_no_hooks').replace(
        "train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)])", ''
    )
    plain = plain.replace('max_epochs=3', 'max_epochs=100, val_interval=100').replace('interval=1)', 'interval=100)')
    (folder / 'plain.py').write_text(plain)
    for name in ('my_plain.py', 'my_plain_config.py'):
        (folder / name).write_text(plain)
    torch.save(MODELS.build(Config.fromfile(folder / 'plain.py').model).state_dict(), folder / 'student.pth')
    (folder / 'groups.json').write_text(json.dumps(dict(a=['b'], b=['a'], c=['d'], d=['c'])))
    distilled = DISTILLED.replace("checkpoint='TEACHER'", "checkpoint='teacher.pth'")
    for name in ('my_config.py', 'my_distilled_config.py'):
        (folder / name).write_text(plain if PLAIN_ON_PAGE.get(page) == name else distilled)
    for name in ('configs', 'tools', 'model-index.yml'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'benchmarks').mkdir()


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in ('FNKD_DATA', 'FNKD_WEIGHTS'):
        if name in os.environ:
            monkeypatch.setenv(name, str(Path(os.environ[name]).resolve()))
    yield tmp_path


def _run(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == 'python':
        done = Tools(folder).run(Path(words[1]).name, *words[2:])
        assert done.code == 0, done.output[-2000:]
        return
    assert words[0] == 'fnkd', words
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit) as ended:
        fnkd_cli.main()
    forget_run()
    assert not ended.value.code


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES, ids=[page.stem for page in PAGES])
def test_commands_run(page: Path, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sandbox(sandbox, page.stem)
    left_out = []
    for number, words in enumerate(commands_of(page)):
        command = ' '.join(words)
        if (
            _begins(command, NOT_RUN)
            or '=' in words[0]
            or (words[0] == 'fnkd' and len(words) < 3 and words[1] != 'doctor')
        ):
            continue
        needs = next((names for part, names in REAL_FILES.items() if part in command), ())
        if not all(name in os.environ for name in needs):
            left_out.append(command)
            continue
        words = [REPLACED.get(word, word) for word in words]
        words = [f'out_{number}' if word == 'DIR' else word for word in words]
        if 'my_plain.py' in words:
            words = [GROUPS.get(word, word) for word in words]
        words += ADDED.get(_begins(command, ADDED) or '', [])
        _run(words, sandbox, monkeypatch)
    if left_out:
        pytest.skip(f'all others run; FNKD_DATA and FNKD_WEIGHTS are needed for: {"; ".join(left_out)}')


def test_no_exception_is_stale() -> None:
    found = [' '.join(words) for page in PAGES for words in commands_of(page)]
    for begin in (*NOT_RUN, *ADDED):
        assert any(command.startswith(begin) for command in found), begin
    assert all(any(word in command.split() for command in found) for word in REPLACED)
