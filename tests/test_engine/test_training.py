"""What ``tools/train.py`` makes of a config before it builds a Runner."""

from pathlib import Path

import pytest

from fnkd_plugin.engine.training import add_default_hooks, check_data_roots, set_loader_defaults
from fnkd_plugin.errors import SetupError
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
    check_data_roots(cfg, ['val_dataloader'])
    cfg.train_dataloader.dataset = dict(type='CIFAR10', data_root='nowhere')
    check_data_roots(cfg)
