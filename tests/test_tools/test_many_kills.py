"""Trainings killed at random moments, each resumed to the end: the weights of a run that was not killed."""

import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest
import torch

from fnkd_plugin.cli import cache, train
from tests.helpers import assert_same_weights, timm_checkpoint
from tests.test_tools.configs import write_configs

KILLS = int(os.environ.get('FNKD_KILLS', 4))
"""For each kind of run."""


def _start(main, argv: list[str], log: Path) -> int:
    """A command in a forked process, which need not import everything again; its process ID."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open('w') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        main(argv)
        code = 0
    except BaseException:
        log.with_suffix('.error').write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _finished(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', ['plain', 'live', 'cached'])
def test_runs_killed_at_random_moments_end_with_the_same_weights(kind: str, workers: int, tmp_path: Path) -> None:
    """With mixup and EMA; a cached teacher's mixed batches come again, too."""
    plain, distilled = write_configs(tmp_path, timm_checkpoint(tmp_path))
    command = [str(plain if kind == 'plain' else distilled)]
    if kind == 'cached':
        folder = tmp_path / 'cache'
        assert _finished(_start(cache.main, [command[0], '--out', str(folder), '--views', '2'], tmp_path / 'cache.log'))
        command += [
            *('--cfg-options', 'model.teacher._delete_=True', 'model.teacher.type=CachedTeacher'),
            f'model.teacher.path={folder}',
        ]
    else:
        command += ['--cfg-options']
    command += [f'train_dataloader.num_workers={workers}', 'randomness.seed=7']

    def run(name: str, *flags: str) -> int:
        return _start(
            train.main, [command[0], '--work-dir', str(tmp_path / name), *flags, *command[1:]], tmp_path / f'{name}.log'
        )

    began = time.monotonic()
    assert _finished(run('whole')), (tmp_path / 'whole.error').read_text()
    length = time.monotonic() - began
    expected = torch.load(tmp_path / 'whole' / 'epoch_3.pth', weights_only=True)
    moments = random.Random(f'{kind} {workers}')
    for kill in range(KILLS):
        name = f'cut{kill}'
        pid = run(name)
        time.sleep(moments.uniform(0.1, 1) * length)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert _finished(run(name, '--resume')), (tmp_path / f'{name}.error').read_text()
        found = torch.load(tmp_path / name / 'epoch_3.pth', weights_only=True)
        for key in ('state_dict', 'ema_state_dict'):
            assert_same_weights(found[key], expected[key])
