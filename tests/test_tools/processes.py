"""Tools run in this process, where importing everything costs nothing, or in one of their own."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.visualization import Visualizer

ROOT = Path(__file__).parents[2]


@dataclass
class Finished:
    """The exit code of a tool (minus the signal that killed it), and what it printed."""

    code: int
    output: str


class Tools:
    """Runs ``tools/*.py`` in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, tool: str, *args: Any) -> Finished:
        """Run ``tools/<tool>`` in this process, as ``python tools/<tool> ARGS``."""
        path = ROOT / 'tools' / tool
        argv, environment, paths, cwd = sys.argv, dict(os.environ), list(sys.path), Path.cwd()
        output = io.StringIO()
        try:
            sys.argv = [str(path), *_words(tool, args)]
            sys.path.insert(0, str(path.parent))
            os.chdir(self.folder)
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = _exit_code(path)
        finally:
            sys.argv, sys.path[:] = argv, paths
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            forget_run()
        return Finished(code, output.getvalue())

    def run_apart(self, tool: str, *args: Any, **env: str) -> Finished:
        """Run ``tools/<tool>`` in a process of its own, with further environment variables: one that is killed."""
        done = subprocess.run(
            [sys.executable, str(ROOT / 'tools' / tool), *_words(tool, args)],
            env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return Finished(done.returncode, done.stdout)


def _words(tool: str, args: tuple[Any, ...]) -> list[str]:
    # With MMEngine's log, in which tests find losses and accuracies.
    return [*map(str, args), *(['--verbose'] if tool == 'train.py' else [])]


def _exit_code(path: Path) -> int:
    try:
        runpy.run_path(str(path), run_name='__main__')
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    return 0


def forget_run() -> None:
    """A run's name is that of its config and the second: the next run of that name must not find this one's logs."""
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    for kind in (MMLogger, MessageHub, DefaultScope, Visualizer, *Visualizer.__subclasses__()):
        kind._instance_dict.clear()
    init_default_scope('mmpretrain')
