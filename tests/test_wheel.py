"""The wheel holds configs, tools and the model index as ``.mim``, and works where the checkout is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ['fnkd_plugin', 'configs', 'tools', 'requirements']
FILES = ['setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml']
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
    """Built from a copy, so that nothing is left in the checkout; with one more model."""
    copy = tmp_path_factory.mktemp('checkout')
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    (copy / 'configs' / 'demo' / 'metafile.yml').write_text(METAFILE)
    _run('-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', 'dist', '.', cwd=copy)
    (built,) = (copy / 'dist').glob('*.whl')
    return built


def test_mim_is_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    mim = {name.removeprefix('fnkd_plugin/.mim/') for name in names if name.startswith('fnkd_plugin/.mim/')}
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in ('configs', 'tools')
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    assert mim == expected | {'model-index.yml', 'configs/demo/metafile.yml'}
    assert not any(name.endswith('.pyc') for name in names)


def test_installed_it_knows_its_models_and_tools(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / 'site'
    _run('-m', 'pip', 'install', '--no-deps', '--no-index', '--target', str(target), str(wheel), cwd=tmp_path)
    said = _run('-c', _USE, cwd=tmp_path, path=str(target)).splitlines()[-1]
    assert said == f'{target / "fnkd_plugin"} wheel-test_digits ImageClassifier'
    tool = target / 'fnkd_plugin' / '.mim' / 'tools' / 'publish_model.py'
    assert '--ema' in _run(str(tool), '--help', cwd=tmp_path, path=str(target))
