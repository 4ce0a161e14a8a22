"""The package's set-up; all that is plain data is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TOOLS = ('train.py', 'test.py', 'cache_teacher.py', 'analyze.py', 'publish_model.py', '*.sh')
"""The others measure and reproduce, and belong to a checkout, which has their results files."""


class BuildWithMim(build_py):
    """Puts configs, tools and the model index into the wheel as ``fnkd_plugin/.mim``, OpenMMLab's place for them.

    An editable install needs no copy: there the package lies beside them.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'fnkd_plugin' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.copytree(ROOT / 'configs', target / 'configs', ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy2(ROOT / 'model-index.yml', target)
        (target / 'tools').mkdir()
        for pattern in TOOLS:
            for path in (ROOT / 'tools').glob(pattern):
                shutil.copy2(path, target / 'tools')


setup(cmdclass={'build_py': BuildWithMim})
