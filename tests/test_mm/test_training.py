"""What ``tools/train.py`` makes of a config before it builds a Runner."""

from pathlib import Path

import pytest

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.distill_config import add_run_hooks
from fnkd_plugin.mm.training import check_data_roots, set_loader_defaults
from tests.helpers import config, resnet


def test_hooks_of_a_run_can_be_turned_off() -> None:
    cfg = config(resnet(), Path('work'), default_hooks=dict(reproducible=None, checkpoint=None))
    cfg.custom_hooks = [dict(type='SummaryHook')]
    add_run_hooks(cfg)
    assert cfg.default_hooks == dict(
        checkpoint=None,
        safe_checkpoint=dict(type='SafeCheckpointHook'),
        check_classes=dict(type='CheckClassesHook'),
        check_weights=dict(type='CheckWeightsHook'),
    )


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


@pytest.mark.parametrize('value', ['root', "'nowhere'"])
def test_the_option_in_the_message_of_a_missing_data_root_works(value: str, tmp_path: Path) -> None:
    file = tmp_path / 'config.py'
    file.write_text(
        f"model = dict(type='A')\nroot = 'nowhere'\ndata = [dict(type='CUB', data_root={str(tmp_path)!r}), "
        f"dict(type='CUB', data_root={value})]\n"
        "train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=data))\n"
    )
    with pytest.raises(SetupError) as found:
        check_data_roots(load_config(file))
    key = str(found.value).partition('--cfg-options ')[2].partition('=FOLDER')[0]
    assert key == 'train_dataloader.dataset.datasets.1.data_root'
    check_data_roots(load_config(file, {key: str(tmp_path)}))


def test_training_needs_no_test_data() -> None:
    cfg = config(resnet(), Path('work'), test_dataloader=dict(dataset=dict(type='CUB', data_root='nowhere')))
    check_data_roots(cfg)
    with pytest.raises(SetupError, match='test_dataloader: there is no folder nowhere'):
        check_data_roots(cfg, ['test_dataloader'])


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ("import os; folder = os.environ['FNKD_NONE']", 'environment variable FNKD_NONE is not set'),
        ("folder = '{{$FNKD_NONE:}}'", r'FNKD_NONE.* cannot be found in .os\.environ'),
        ("folder = {}['FNKD_NONE']", "KeyError: 'FNKD_NONE'$"),
        ('folder = 1', 'has no model'),
        ('model = dict(type="A"); train_dataloder = 1', "'train_dataloder'; did you mean train_dataloader"),
        ('model = dict(type="A"); param_schedulers = 1', "'param_schedulers'; did you mean param_scheduler"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_with_the_reason(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / 'cfg.py'
    path.write_text(line)
    with pytest.raises(SetupError, match=message):
        load_config(path)


@pytest.mark.parametrize('key', ['train_dataloader2', 'test_cfg_a', 'my_test_cfg', 'gallery_dataloader', 'data_root'])
def test_variables_of_a_config_may_be_called_like_its_keys(key: str, tmp_path: Path) -> None:
    path = tmp_path / 'cfg.py'
    path.write_text(f'model = dict(type="A"); {key} = 1')
    assert key in load_config(path)
