"""Worker processes of a study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[3] / 'tools'
PARENT = """
import multiprocessing, os, pathlib, sys, time
from concurrent.futures import ProcessPoolExecutor
from experiments.job import start

if __name__ == '__main__':
    logs = pathlib.Path(sys.argv[1])
    pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), start, (logs,))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f'/proc/{pid}/stat')
    return not status.is_file() or status.read_text().rpartition(')')[2].split()[0] != 'Z'


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / 'parent.py'
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(TOOLS)},
    )
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
    assert _is_running(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    ends = time.monotonic() + 30
    while _is_running(worker) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not _is_running(worker)
