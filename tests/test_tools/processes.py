"""Tools in processes of their own, forked from one that has imported everything, which costs seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Finished:
    """What became of a process: its exit code (minus the signal that killed it) and output."""

    code: int
    output: str


class Nursery:
    """Starts tools; get one from :func:`nursery`."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._count = 0

    def run(self, tool: str, *args: Any, **env: str) -> Finished:
        """Run ``tools/<tool>`` to its end."""
        return self.run_together([[tool, *args]], [env])[0]

    def run_together(self, calls: Sequence[Sequence[Any]], envs: Sequence[dict[str, str]]) -> list[Finished]:
        """Run several at once, each with further environment variables of its own."""
        jobs = []
        for (tool, *args), env in zip(calls, envs, strict=True):
            self._count += 1
            log = self._folder / f'{self._count}.log'
            argv = [str(ROOT / 'tools' / tool), *map(str, args)]
            jobs.append(dict(argv=argv, env=env, log=str(log), cwd=str(self._folder)))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(jobs), file=self._process.stdin, flush=True)
        codes = json.loads(self._process.stdout.readline())
        return [Finished(code, Path(job['log']).read_text()) for code, job in zip(codes, jobs, strict=True)]


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """A process that forks tools, which run in ``folder``."""
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(folder)]), 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen(
        [sys.executable, '-c', f'from {__name__} import serve; serve()'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=folder,
    ) as process:
        yield Nursery(process, folder)
        process.stdin.close()  # type: ignore[union-attr]


def serve() -> None:
    """The nursery's own process."""
    import runpy

    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    import tests.helpers  # noqa: F401

    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            child = os.fork()
            if child == 0:
                log = os.open(job['log'], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.chdir(job['cwd'])
                os.environ.update(job['env'])
                sys.argv = job['argv']
                sys.path[0] = str(Path(sys.argv[0]).parent)
                runpy.run_path(sys.argv[0], run_name='__main__')
                sys.exit()
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=channel, flush=True)
