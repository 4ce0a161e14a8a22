"""The environment that ``make`` uses: its folder, and building it once.

    python requirements/environment.py path STACK
    python requirements/environment.py build STACK FOLDER

It has third-party packages only, so that all checkouts with the same requirements share it.
``make`` puts the checkout itself on PYTHONPATH.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STACKS = ('onedl', 'openmmlab')
# A file inside the environment. If it exists, the folder is ours and may be cleared. Its lock is held while
# building. Its content is the key of the requirements for which the build was finished.
MARK = 'fnkd_plugin.env'


def constraints(stack: str) -> Path:
    """The file that pins every package of a stack."""
    return HERE / f'constraints-{stack}.txt'


def requirements(stack: str) -> list[Path]:
    """The files that name what is installed."""
    return [HERE / f'{name}.txt' for name in ('core', stack, 'tools', 'huggingface', 'export', 'docs', 'dev')]


def key(stack: str) -> str:
    """A hash of everything that an environment depends on."""
    digest = hashlib.sha256(f'{platform.python_version()} {platform.machine()}'.encode())
    for file in (constraints(stack), *requirements(stack)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def default_folder(stack: str) -> Path:
    """A folder in the user's cache that changes with the requirements."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return cache / 'fnkd_plugin' / f'{stack}-py{platform.python_version()}-{key(stack)[:12]}'


def is_ready(stack: str, folder: Path) -> bool:
    """Whether a finished environment with the current requirements exists."""
    mark = folder / MARK
    return (folder / 'bin/python').exists() and mark.is_file() and mark.read_text() == key(stack)


def build(stack: str, folder: Path) -> None:
    """Create the environment, or rebuild it if a build was killed or the requirements changed."""
    if is_ready(stack, folder):
        return
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        sys.exit(
            f'{folder} was not made by `make setup`, so it is not changed: '
            'name another VENV, or install there yourself with `pip install -e ".[onedl,dev]"`.'
        )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / MARK, 'a') as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)  # a second make waits here ...
        if is_ready(stack, folder):  # ... and then finds the work done
            return
        mark.truncate(0)
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != MARK:
                entry.unlink()
        print(f'Building the {stack} environment (about 6 GB, minutes) in {folder}', flush=True)
        fill(stack, folder, mark.fileno())
        mark.write(key(stack))
    print(f'Ready: {folder}', flush=True)


def fill(stack: str, folder: Path, lock: int) -> None:
    """Run venv and pip. They inherit the lock, so that it is held as long as any of them runs."""
    # Environment variables also apply in pip's build environments, unlike options. pip splits them at
    # spaces, which a checkout's path may have, so the names are relative and pip runs in HERE.
    pins = constraints(stack).name
    env = {**os.environ, 'PIP_CONSTRAINT': pins, 'PIP_BUILD_CONSTRAINT': pins}
    env.pop('PYTHONPATH', None)  # the checkout is not part of the environment
    python = str(folder / 'bin/python')

    def run(*command: str) -> None:
        if subprocess.run(command, cwd=HERE, env=env, pass_fds=[lock]).returncode:
            sys.exit(f'`{" ".join(command[:4])} ...` failed; the next `make setup` starts again.')

    run(sys.executable, '-m', 'venv', str(folder))
    files = [arg for file in requirements(stack) for arg in ('-r', str(file))]
    run(python, '-m', 'pip', 'install', '--no-input', *files)
    # The OpenMMLab packages require opencv-python, which cannot be imported without the system's libGL.
    # opencv-python-headless is the same module without windows.
    run(python, '-m', 'pip', 'uninstall', '--quiet', '--yes', 'opencv-python')
    run(python, '-m', 'pip', 'install', '--quiet', '--no-deps', 'opencv-python-headless')


def main(action: str, stack: str, folder: str = '') -> None:
    """Print the default folder, or build."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f'Python 3.10 to 3.13 is needed, this is {platform.python_version()}: set PYTHON=')
    if stack not in STACKS:
        sys.exit(f'STACK={stack} is unknown: it is one of {", ".join(STACKS)}.')
    if action == 'path':
        print(default_folder(stack))
    else:
        build(stack, Path(folder).absolute() if folder else default_folder(stack))


if __name__ == '__main__':
    main(*sys.argv[1:])
