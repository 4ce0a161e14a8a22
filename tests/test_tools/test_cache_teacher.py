"""``tools/cache_teacher.py``: killed and resumed, on two processes, and its errors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import timm_checkpoint
from tests.test_cache.caches import contents
from tests.test_tools import test_distributed
from tests.test_tools.configs import write_configs
from tests.test_tools.processes import ROOT, Tools

VIEWS = ['--views', 3, '--seed', 5]


def _config(folder: Path, mixed: bool = False) -> Path:
    plain, distilled = write_configs(folder, timm_checkpoint(folder))
    text = plain.read_text()
    if not mixed:
        plain.write_text(text.replace(",\n    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))", ')'))
    return distilled


def kill_later(images: torch.Tensor) -> torch.Tensor:
    """Logits, or SIGKILL at the call of that number."""
    calls = int(os.environ.get('KILL_AT', 0))
    os.environ['KILL_AT'] = str(calls - 1)
    if calls == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return images.mean((2, 3)) @ torch.linspace(-1, 1, 3 * 4).view(3, 4)


@pytest.mark.slow
def test_a_killed_tool_resumes_and_its_cache_trains(tools: Tools, tmp_path: Path) -> None:
    config = _config(tmp_path)
    fn = "dict(type='CallableTeacher', fn='tests.test_tools.test_cache_teacher.kill_later', mean=[0]*3, std=[1]*3)"
    config.write_text(
        config.read_text() + f'model["teacher"] = {fn}\nmodel["head"]["soft_loss"] = dict(type="KDLoss")\n'
    )
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    flags = [*VIEWS, '--cfg-options', 'train_dataloader.num_workers=1']
    done = tools.run('cache_teacher.py', config, '--out', whole, *flags)
    assert done.code == 0, done.output
    assert all(fact in done.output for fact in ('16 images', '3 views', '4 classes', 'float16', '960 B'))
    # The probe, the first image, and 4 batches a view: within the second view.
    killed = tools.run_apart('cache_teacher.py', config, '--out', cut, *flags, KILL_AT='8')
    assert killed.code == -signal.SIGKILL, killed.output
    early = tools.run('train.py', tmp_path / 'plain.py', '--teacher', f'cached:{cut}', '--distill', 'kd')
    assert early.code == 1
    assert '32 of 48' in early.output and 'tools/cache_teacher.py' in early.output
    resumed = tools.run('cache_teacher.py', config, '--out', cut, *flags)
    assert resumed.code == 0, resumed.output
    assert contents(cut) == contents(whole)

    trained = tools.run('train.py', tmp_path / 'plain.py', '--teacher', f'cached:{cut}', '--distill', 'kd')
    assert trained.code == 0, trained.output
    other = tools.run('cache_teacher.py', config, '--out', cut, *VIEWS[:2], '--seed', 6)
    assert other.code == 1
    assert 'is another cache: seed: 5 in the cache, 6 now' in other.output


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='on CPUs')
@pytest.mark.parametrize('mixed', [False, True])
def test_two_processes_write_the_cache_of_one(mixed: bool, tools: Tools, tmp_path: Path) -> None:
    config = _config(tmp_path, mixed)
    one = tools.run('cache_teacher.py', config, '--out', tmp_path / 'one', *VIEWS)
    assert one.code == 0, one.output
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=29563']
    flags = ['--out', tmp_path / 'two', *VIEWS, '--launcher', 'pytorch']
    command = [*torchrun, ROOT / 'tools' / 'cache_teacher.py', config, *flags]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    two = subprocess.run([*map(str, command)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert two.returncode == 0, two.stdout
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')
    if mixed:  # by Mixup, which the plain config has
        trained = tools.run('train.py', tmp_path / 'plain.py', '--teacher', f'cached:{tmp_path / "two"}')
        assert trained.code == 0, trained.output


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='on CPUs')
def test_two_processes_train_from_a_cache_as_one_does(tools: Tools, tmp_path: Path) -> None:
    """Over as many steps as with the live teacher; the second epoch replays the one view."""
    live = test_distributed._config(tmp_path)
    cache = tools.run('cache_teacher.py', live, '--out', tmp_path / 'cache', '--views', 1)
    assert cache.code == 0, cache.output
    config = tmp_path / 'cached.py'
    teacher = f"dict(_delete_=True, type='CachedTeacher', path='{tmp_path / 'cache'}')"
    config.write_text(f"_base_ = 'distilled.py'\nmodel = dict(teacher={teacher})\n")
    options = ['--cfg-options', 'train_cfg.max_epochs=2']
    one = tools.run('train.py', config, '--work-dir', tmp_path / 'one', *options)
    assert one.code == 0, one.output
    options.append('train_dataloader.batch_size=2')
    two = test_distributed._script('dist_train.sh', config, 2, '--work-dir', tmp_path / 'two', *options)
    assert two.returncode == 0, two.stdout
    first, second = (torch.load(tmp_path / n / 'epoch_2.pth', weights_only=True) for n in ('one', 'two'))
    for key, weight in first['state_dict'].items():
        torch.testing.assert_close(second['state_dict'][key], weight, rtol=0, atol=1e-6)


def test_what_cannot_be_cached_ends_in_one_line(tools: Tools, tmp_path: Path) -> None:
    config = _config(tmp_path)
    plain = tools.run('cache_teacher.py', tmp_path / 'plain.py', '--out', tmp_path / 'out')
    assert plain.output.splitlines()[-1].startswith('error: ') and 'teacher' in plain.output
    mixed = tools.run('cache_teacher.py', _config(tmp_path, mixed=True), '--out', tmp_path / 'out', '--batch-size', 5)
    assert mixed.output.splitlines()[-1].startswith('error: --batch-size 5') and ' 4' in mixed.output.splitlines()[-1]
    views = str(10**15)
    large = tools.run('cache_teacher.py', config, '--out', tmp_path / 'out', '--views', views)
    (tmp_path / 'file').touch()
    for out in ('plain.py', '.', 'file/cache'):
        refused = tools.run('cache_teacher.py', config, '--out', tmp_path / out)
        assert refused.code == 1 and len(refused.output.splitlines()) == 1, refused.output
    assert large.code == 1 and '3.2e+05 TB' in large.output.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


def test_a_path_with_markup_is_printed_as_it_is(tools: Tools, tmp_path: Path) -> None:
    done = tools.run('cache_teacher.py', _config(tmp_path), '--out', tmp_path / 'c[red][' / 'red]')
    assert done.code == 0, done.output
    assert f'--teacher cached:{tmp_path}/c[red][/red]' in done.output
