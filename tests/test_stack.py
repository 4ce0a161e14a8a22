"""The package where no OpenMMLab stack is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

BARE = """
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, *rest: None if name in ('mmengine', 'mmcv', 'mmpretrain') else found(name, *rest)
import fnkd_plugin.functional
import sys
assert not {'mmengine', 'mmcv', 'mmpretrain', 'timm'} & set(sys.modules)
for statement in ('import fnkd_plugin.losses', 'from fnkd_plugin import Distiller', 'import fnkd_plugin.checkpoints'):
    try:
        exec(statement)
    except ImportError as error:
        assert 'fnkd_plugin[onedl]' in str(error) and 'fnkd_plugin[openmmlab]' in str(error), error
    else:
        raise AssertionError(statement)
print('fine')
"""


@pytest.mark.upstream
def test_functional_needs_torch_alone_and_the_rest_names_the_extra() -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, '-c', BARE], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == 'fine', done.stderr
