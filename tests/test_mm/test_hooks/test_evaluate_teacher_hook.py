from pathlib import Path

import pytest
import torch

from fnkd_plugin.errors import SetupError
from tests.helpers import distilled, resnet, timm_teacher
from tests.test_mm.test_hooks.runs import run

VALIDATION = dict(
    val_dataloader=dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='RandomImages', count=16, pipeline=[dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    ),
    val_evaluator=dict(type='Accuracy'),
    val_cfg=dict(),
    train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=5),
    custom_hooks=[dict(type='EvaluateTeacherHook')],
    log_level='INFO',
)


def test_a_teacher_no_better_than_chance_is_warned_of(tmp_path: Path) -> None:
    run(distilled(resnet(), timm_teacher(tmp_path)), tmp_path / 'work', **VALIDATION)
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'Teacher TimmTeacher(test_resnet) on the validation set: accuracy/top1' in log
    assert 'chance is 25.0%: its normalisation or class order' in log


@pytest.mark.parametrize(('right', 'warned'), [(27, True), (28, False)])
def test_chance_has_a_spread_and_all_processes_count(
    right: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 80 images 20 are right by chance, with a standard deviation of 3.9; this process has 16 of them."""
    reduced = []

    def all_reduce(counts: torch.Tensor) -> None:
        reduced.append(counts.tolist())
        counts.copy_(torch.tensor([right, 80]))

    monkeypatch.setattr('fnkd_plugin.mm.hooks.evaluate_teacher_hook.all_reduce', all_reduce)
    run(distilled(resnet(), timm_teacher(tmp_path)), tmp_path / 'work', **VALIDATION)
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert ('chance is' in log) == warned
    assert len(reduced) == 1 and reduced[0][1] == 16


def test_metrics_by_class_are_logged_as_they_are(tmp_path: Path) -> None:
    metrics = [dict(type='Accuracy'), dict(type='ConfusionMatrix'), dict(type='SingleLabelMetric', average=None)]
    options = {**VALIDATION, 'val_evaluator': metrics}
    run(distilled(resnet(), timm_teacher(tmp_path)), tmp_path / 'work', **options)
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'accuracy/top1' in log and 'confusion_matrix/result: tensor' in log and 'precision_classwise' in log


def test_it_disturbs_nothing(tmp_path: Path) -> None:
    model = distilled(resnet(), timm_teacher(tmp_path))
    unseeded = {**VALIDATION, 'default_hooks': dict(reproducible=None)}
    ends = []
    for hooks in ([], [dict(type='EvaluateTeacherHook')]):
        runner = run(model, tmp_path / str(len(ends)), **{**unseeded, 'custom_hooks': hooks})
        ends.append(runner.model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_it_needs_a_teacher_and_a_validation_set(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match='not a Distiller'):
        run(resnet(), tmp_path, **VALIDATION)
    off = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)
    with pytest.raises(SetupError, match='no validation set'):
        run(distilled(resnet(), timm_teacher(tmp_path)), tmp_path, **{**VALIDATION, **off})
