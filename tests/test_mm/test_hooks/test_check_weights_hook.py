"""Checkpoints that do not fit the model are refused, whichever way they are loaded."""

from pathlib import Path

import pytest
import torch

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.training import build_runner
from tests.helpers import build, config, resnet

pytestmark = pytest.mark.upstream


@pytest.mark.parametrize('how', ['load_from', 'test'])
@pytest.mark.parametrize(
    ('state', 'fact'),
    [
        (lambda: build(resnet(num_classes=5)).state_dict(), 'head.fc.weight is (5, 32), not (4, 32)'),
        (lambda: {'other.weight': torch.zeros(1)}, 'missing (backbone.conv1.weight'),
        (lambda: {**build(resnet()).state_dict(), 'more': torch.zeros(1)}, '1 unknown (more)'),
    ],
)
def test_weights_of_another_model_are_refused(how: str, state, fact: str, tmp_path: Path) -> None:
    torch.save(dict(state_dict=state(), meta={}), tmp_path / 'other.pth')
    cfg = config(resnet(), tmp_path, load_from=str(tmp_path / 'other.pth'))
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.train_dataloader, dict(type='Accuracy'), {}
    with pytest.raises(SetupError) as error:
        runner = build_runner(cfg)
        runner.train() if how == 'load_from' else runner.test()
    assert fact in str(error.value) and 'other.pth' in str(error.value)


def test_weights_that_fit_are_loaded(tmp_path: Path) -> None:
    state = build(resnet(), seed=5).state_dict()
    torch.save(dict(model=state, optimizer={}), tmp_path / 'plain.pth')  # as DeiT's trainer stores them
    runner = build_runner(config(resnet(), tmp_path, load_from=str(tmp_path / 'plain.pth')))
    runner.load_or_resume()
    assert all(torch.equal(value, state[key]) for key, value in runner.model.state_dict().items())
