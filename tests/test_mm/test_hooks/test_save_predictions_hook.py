"""The file of what a model predicted."""

from pathlib import Path

import numpy as np
import pytest

from fnkd_plugin.mm.hooks import SavePredictionsHook
from tests.helpers import resnet, train

pytestmark = pytest.mark.upstream

VALIDATION = dict(
    val_dataloader=dict(
        batch_size=3,
        num_workers=0,
        dataset=dict(type='RandomImages', count=8, pipeline=[dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    ),
    val_cfg=dict(),
    val_evaluator=dict(type='Accuracy'),
)


def test_predictions_are_those_that_the_metric_saw(tmp_path: Path) -> None:
    runner = train(resnet(), tmp_path, custom_hooks=[dict(type='SavePredictionsHook')], **VALIDATION)
    found = np.load(tmp_path / SavePredictionsHook.file_name)
    assert found['scores'].shape == (8, 4) and found['labels'].tolist() == [0, 1, 2, 3] * 2
    np.testing.assert_allclose(found['scores'].sum(1), 1, rtol=1e-6)
    accuracy = 100 * (found['scores'].argmax(1) == found['labels']).mean()
    assert accuracy == pytest.approx(runner.message_hub.get_scalar('val/accuracy/top1').current())


def test_each_evaluation_replaces_the_one_before(tmp_path: Path) -> None:
    runner = train(resnet(), tmp_path, custom_hooks=[dict(type='SavePredictionsHook')], **VALIDATION)
    before = np.load(tmp_path / SavePredictionsHook.file_name)['scores']
    for parameter in runner.model.parameters():
        parameter.data.zero_()
    runner.val()
    after = np.load(tmp_path / SavePredictionsHook.file_name)['scores']
    assert after.shape == before.shape
    np.testing.assert_allclose(after, 0.25)
    assert not np.allclose(before, 0.25)
