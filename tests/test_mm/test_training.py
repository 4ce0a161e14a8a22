"""What ``tools/train.py`` makes of a config before it builds a Runner."""

from pathlib import Path

import pytest

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import load_config, merge_options
from fnkd_plugin.mm.training import add_default_hooks, check_data_roots, set_loader_defaults
from tests.helpers import config, resnet


def test_default_hooks_can_be_put_off() -> None:
    cfg = config(resnet(), Path('work'), default_hooks=dict(reproducible=None, checkpoint=None))
    add_default_hooks(cfg)
    assert cfg.default_hooks == dict(checkpoint=None, safe_checkpoint=dict(type='SafeCheckpointHook'))


def test_loader_defaults_make_sense() -> None:
    cfg = config(resnet(), Path('work'))
    cfg.train_dataloader.persistent_workers = True
    set_loader_defaults(cfg)
    assert cfg.train_dataloader.persistent_workers is False
    cfg.train_dataloader.num_workers = 2
    del cfg.train_dataloader['persistent_workers']
    set_loader_defaults(cfg)
    assert cfg.train_dataloader.persistent_workers is True
    set_loader_defaults(cfg, persistent_workers=False)
    assert cfg.train_dataloader.persistent_workers is False


def test_a_missing_data_root_is_named() -> None:
    cfg = config(resnet(), Path('work'))
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(type='CUB', data_root='nowhere'))
    with pytest.raises(SetupError, match='train_dataloader: there is no folder nowhere with the data of CUB'):
        check_data_roots(cfg)
    with pytest.raises(SetupError, match=r'--cfg-options train_dataloader\.dataset\.dataset\.data_root=FOLDER'):
        check_data_roots(cfg)
    check_data_roots(cfg, ['val_dataloader'])
    cfg.train_dataloader.dataset = dict(type='CIFAR10', data_root='nowhere')
    check_data_roots(cfg)


@pytest.mark.parametrize('variable', [True, False])
def test_the_remedy_for_a_missing_data_root_works(variable: bool, tmp_path: Path) -> None:
    cfg = config(resnet(), Path('work'), **({'data_root': 'nowhere'} if variable else {'data_root': 'elsewhere'}))
    parts = [dict(type='CUB', data_root=str(tmp_path)), dict(type='CUB', data_root='nowhere')]
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    with pytest.raises(SetupError) as found:
        check_data_roots(cfg)
    key = str(found.value).partition('--cfg-options ')[2].partition('=FOLDER')[0]
    assert (key == 'data_root') == variable
    merge_options(cfg, {key: str(tmp_path)})
    check_data_roots(cfg)


def test_training_needs_no_test_data() -> None:
    cfg = config(resnet(), Path('work'), test_dataloader=dict(dataset=dict(type='CUB', data_root='nowhere')))
    check_data_roots(cfg)
    with pytest.raises(SetupError, match='test_dataloader: there is no folder nowhere'):
        check_data_roots(cfg, ['test_dataloader'])


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ("import os; folder = os.environ['FNKD_NONE']", 'environment variable FNKD_NONE is not set'),
        ("folder = '{{$FNKD_NONE:}}'", r'FNKD_NONE.* cannot be found in .os\.environ'),
        ("folder = {}['FNKD_NONE']", "KeyError: 'FNKD_NONE'$"),
        ('folder = 1', 'has no model'),
    ],
)
def test_why_a_config_cannot_be_read(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / 'cfg.py'
    path.write_text(line)
    with pytest.raises(SetupError, match=said):
        load_config(path)
