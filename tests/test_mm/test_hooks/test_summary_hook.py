"""What a run logs before its first step and after its last."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from fnkd_plugin import distill
from fnkd_plugin.mm.hooks.summary_hook import as_text
from tests.helpers import config, resnet, timm_teacher
from tests.test_mm.test_hooks.test_evaluate_teacher_hook import VALIDATION

pytestmark = pytest.mark.upstream


def _log(folder: Path) -> str:
    return next(folder.glob('*/*.log')).read_text()


@pytest.mark.parametrize(
    ('evaluated', 'warmup', 'shown'),
    [(True, 0.5, 'warm-up 50% (no effect in 2 epochs)'), (False, 0.75, 'warm-up 75%\n')],
)
def test_a_distilled_run_outside_of_the_tools(evaluated: bool, warmup: float, shown: str, tmp_path: Path) -> None:
    options = {**VALIDATION, 'train_cfg': dict(by_epoch=True, max_epochs=2, val_interval=1)}
    plain = config(resnet(), tmp_path, **{**options, 'custom_hooks': options['custom_hooks'] if evaluated else []})
    runner = Runner.from_cfg(distill(plain, timm_teacher(tmp_path), 'kd', hard_weight=0.25, warmup=warmup))
    runner.train()
    log = _log(tmp_path)
    count = sum(parameter.numel() for parameter in runner.model.parameters())
    for fact in (
        'training set     RandomImages: 4 classes, 16 images',
        f'ResNet + LinearClsHead of depth 18, {count:,} parameters',
        '0.25 × CrossEntropyLoss(loss_weight=1.0) + KDLoss(temperature=4.0, loss_weight=0.5)',
        shown,
        'TimmTeacher(test_resnet)',
        str(tmp_path / 'epoch_2.pth'),
    ):
        assert fact in log
    assert len(re.findall(r'accuracy/top1 +[0-9.]+, best [0-9.]+', log)) == 1
    assert ('not evaluated' in log) == (not evaluated)
    if evaluated:
        result = re.search(r'validation set: (accuracy/top1 [0-9.]+)', log)
        assert result is not None and log.count(result[1]) == 3
    # Plain tensors, numbers and strings: timm and torch read the checkpoint.
    assert set(torch.load(tmp_path / 'epoch_2.pth', weights_only=True)['state_dict']) == set(runner.model.state_dict())


def test_a_table_is_plain_text_and_shows_markup_as_it_is() -> None:
    assert as_text('Title', [('a', '[red]x[/red]'), ('longer', 'y' * 300)]).split() == [
        'Title', 'a', '[red]x[/red]', 'longer', 'y' * 300,
    ]  # fmt: skip
