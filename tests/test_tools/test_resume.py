"""``tools/train.py`` killed for real, and resumed."""

from pathlib import Path

import pytest
import torch

from tests.helpers import assert_same_weights, timm_checkpoint
from tests.test_tools.configs import write_configs
from tests.test_tools.processes import Tools

KILLABLE = "custom_imports['imports'].append('tests.test_tools.killing')\ncustom_hooks.append(dict(type='Kill'))\n"


def _configs(folder: Path) -> tuple[Path, Path]:
    plain, distilled = write_configs(folder, timm_checkpoint(folder))
    plain.write_text(plain.read_text() + KILLABLE)
    text = distilled.read_text()
    distilled.write_text(text.replace("'fnkd_plugin',", "'fnkd_plugin', 'tests.test_tools.killing',"))
    return plain, distilled


def _assert_same_ends(a: Path, b: Path) -> None:
    first, second = (torch.load(folder / 'epoch_3.pth', weights_only=True) for folder in (a, b))
    assert first['meta']['seed'] == second['meta']['seed']
    assert first['meta']['iter'] == second['meta']['iter'] == 12
    for key in ('state_dict', 'ema_state_dict'):
        assert_same_weights(first[key], second[key])


@pytest.mark.parametrize('kind', [pytest.param('plain', marks=pytest.mark.slow), 'distilled'])
@pytest.mark.upstream
def test_a_killed_run_resumes_exactly(tools: Tools, tmp_path: Path, kind: str) -> None:
    config = _configs(tmp_path)[['plain', 'distilled'].index(kind)]
    flags = ['--cfg-options', 'train_dataloader.num_workers=2', 'randomness.seed=7']
    whole = tools.run('train.py', config, '--work-dir', tmp_path / 'whole', *flags)
    assert whole.code == 0, whole.output
    # Without a seed on the command line: the checkpoint has it.
    killed = tools.run_apart('train.py', config, '--work-dir', tmp_path / 'cut', *flags, KILL_AFTER='6')
    assert killed.code == -9, killed.output
    assert (tmp_path / 'cut' / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    resumed = tools.run('train.py', config, '--work-dir', tmp_path / 'cut', '--resume', *flags[:2])
    assert resumed.code == 0, resumed.output
    _assert_same_ends(tmp_path / 'whole', tmp_path / 'cut')


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(tools: Tools, tmp_path: Path) -> None:
    config, _ = _configs(tmp_path)
    flags = ['--cfg-options', 'randomness.seed=7', 'default_hooks.checkpoint.max_keep_ckpts=1']
    cut = ['train.py', config, '--work-dir', tmp_path / 'cut']
    assert tools.run('train.py', config, '--work-dir', tmp_path / 'whole', *flags).code == 0
    assert tools.run_apart(*cut, *flags, KILL_WRITING='epoch_2.pth').code == -9
    torn = tools.run(*cut[:2], '--work-dir', tmp_path / 'torn', '--resume', tmp_path / 'cut' / '.epoch_2.pth')
    assert torn.code == 1
    assert all(fact in torn.output.splitlines()[-1] for fact in ('epoch_2.pth cannot be read', 'truncated'))
    resumed = tools.run(*cut, '--resume', *flags)
    assert resumed.code == 0, resumed.output
    _assert_same_ends(tmp_path / 'whole', tmp_path / 'cut')
