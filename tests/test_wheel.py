"""The wheel holds the command, and as ``.mim`` configs, tools and model index; it works without the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import timm_checkpoint
from tests.test_cli import photos

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ['fnkd_cli', 'fnkd_plugin', 'configs', 'tools', 'requirements']
FILES = ['setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml', 'CHANGELOG.md']
METAFILE = 'Models: [{Name: wheel-test_digits, Config: configs/demo/fnkd_digits.py}]'

_USE = """
import sys
from pathlib import Path
import fnkd_plugin
from mmpretrain import get_model, list_models
here = Path(fnkd_plugin.__file__).parent
print(here, *list_models('wheel-test'), type(get_model('wheel-test_digits')).__name__)
"""


def _run(*command: str, cwd: Path, path: str = '') -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=cwd, env={**os.environ, 'PYTHONPATH': path}
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout; with one more model; an sdist lies beside it."""
    copy = tmp_path_factory.mktemp('checkout')
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    (copy / 'configs' / 'demo' / 'metafile.yml').write_text(METAFILE)
    _run('-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', 'dist', '.', cwd=copy)
    _run('-m', 'build', '--sdist', '--no-isolation', '-o', 'dist', '.', cwd=copy)
    (built,) = (copy / 'dist').glob('*.whl')
    return built


def test_mim_is_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    mim = {name.removeprefix('fnkd_plugin/.mim/') for name in names if name.startswith('fnkd_plugin/.mim/')}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    tools = ('train.py', 'test.py', 'cache_teacher.py', 'analyze.py', 'publish_model.py')
    expected |= {f'tools/{name}' for name in (*tools, 'dist_train.sh', 'dist_test.sh', 'slurm_train.sh')}
    assert {'fnkd_cli/__init__.py', 'fnkd_plugin/cli/train.py', 'fnkd_plugin/analysis/report.html'} <= names
    assert mim == expected | {'model-index.yml', 'configs/demo/metafile.yml'}
    assert not any(name.endswith('.pyc') for name in names)


def test_installed_it_knows_its_models_and_tools(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / 'site'
    _run('-m', 'pip', 'install', '--no-deps', '--no-index', '--target', str(target), str(wheel), cwd=tmp_path)
    said = _run('-c', _USE, cwd=tmp_path, path=str(target)).splitlines()[-1]
    assert said == f'{target / "fnkd_plugin"} wheel-test_digits ImageClassifier'
    tool = target / 'fnkd_plugin' / '.mim' / 'tools' / 'publish_model.py'
    assert '--ema' in _run(str(tool), '--help', cwd=tmp_path, path=str(target))


def test_both_files_pass_twine_and_the_sdist_builds(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob('*.tar.gz')
    assert 'FAILED' not in _run('-m', 'twine', 'check', '--strict', str(wheel), str(sdist), cwd=wheel.parent)
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'requirements/onedl.txt', 'tools/train.py', 'configs/demo/fnkd_digits.py', 'model-index.yml'} <= names


@pytest.fixture
def environment() -> Iterator[Path]:
    """An empty environment; it is removed at once, since pytest keeps the folders of three runs."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        found = subprocess.run(
            [Path(folder) / 'bin' / 'pip', 'download', '--no-deps', '-d', folder, 'typer'], capture_output=True
        )
        if found.returncode:
            pytest.skip('pip finds no packages here')
        yield Path(folder) / 'bin'


def test_a_folder_of_photos_trains_where_the_wheel_is_installed(wheel: Path, environment: Path, tmp_path: Path) -> None:
    """With the packages that pip finds for the wheel (6 GB, about two minutes); in an empty folder."""
    empty = tmp_path / 'empty'
    photos.folder(empty / 'birds', train=4, val=2)
    weights = str(timm_checkpoint(tmp_path, 'test_resnet', num_classes=7))
    train = ['fnkd', 'train', 'birds', '--student', 'test_resnet', '--teacher', 'test_resnet']
    train += [
        '--student-checkpoint',
        weights,
        '--teacher-checkpoint',
        weights,
        '--image-size',
        '32',
        '--iterations',
        '4',
    ]
    for name, *flags in (['pip', 'install', '--quiet', f'{wheel}[onedl]'], train):
        done = subprocess.run(
            [environment / name, *flags],
            cwd=empty,
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': ''},
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert not done.stderr
    assert (empty / 'work_dirs' / 'birds_test_resnet' / 'fnkd' / 'test_resnet.safetensors').is_file()
