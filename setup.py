"""The package's set-up; all that is plain data is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml')


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
        for name in MIM:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(ROOT / name, target / name)


setup(cmdclass={'build_py': BuildWithMim})
