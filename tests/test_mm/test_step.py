"""Statistics of one distillation step for the log."""

import math
from typing import Any

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor

from fnkd_plugin import Prediction
from fnkd_plugin.mm.step import Step
from fnkd_plugin.prediction import EnsemblePrediction
from tests.helpers import CountOperations

pytestmark = pytest.mark.upstream

STUDENT = Prediction(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
TEACHER = Prediction(torch.eye(3)[[0, 2, 2]], torch.tensor([4.0, 5.0, 9.0]), torch.zeros(3))


def _labelled(*labels: int) -> list[DataSample]:
    return [DataSample().set_gt_label(label) for label in labels]


def test_agreement_accuracy_norms_and_hard_loss() -> None:
    found = Step.of(STUDENT, TEACHER, _labelled(1, 2, 2), dict(loss=torch.tensor(0.5))).statistics()
    assert {name: round(value, 4) for name, value in found.items()} == dict(
        agreement=0.6667, teacher_acc=0.6667, teacher_norm=6.0, student_norm=2.0, hard_ce=0.5
    )
    assert not [name for name in found if 'loss' in name], 'MMEngine sums every key with "loss" in it'


def test_the_hard_loss_is_the_sum_of_all_the_students_losses() -> None:
    own = dict(loss=torch.tensor([1.0, 3.0]), loss_aux=[torch.tensor(0.5), torch.tensor(0.25)], accuracy=torch.ones(1))
    assert Step.of(STUDENT, TEACHER, None, own).statistics()['hard_ce'] == 2.75


def test_accuracy_under_mixup_counts_the_heavier_class() -> None:
    samples = [
        DataSample().set_gt_score(torch.tensor(score)) for score in ([0.6, 0.4, 0], [0.6, 0, 0.4], [0, 0.2, 0.8])
    ]
    assert Step.of(STUDENT, TEACHER, samples, {}).statistics()['teacher_acc'] == pytest.approx(2 / 3)


def test_what_is_unknown_is_left_out() -> None:
    step = Step.of(Prediction(STUDENT.logits), Prediction(TEACHER.logits), None, {})
    assert list(step.statistics()) == ['agreement']


def test_keeping_a_step_calls_no_operation() -> None:
    samples, own = _labelled(0, 1, 2), dict(loss=torch.ones(()))
    with CountOperations() as counter:
        step = Step.of(STUDENT, TEACHER, samples, own)
    assert counter.calls == [] and step.student is STUDENT and step.teacher is TEACHER


def test_a_compiled_step_keeps_no_gradient() -> None:
    kept: list[Step] = []

    def step(logits: Tensor) -> Tensor:
        kept.append(Step.of(Prediction(logits * 2, logits.norm(dim=1)), TEACHER, None, {}))
        return logits.sum()

    logits = torch.eye(3, requires_grad=True)
    step(logits)
    compiled: Any = torch.compile(step, backend='eager', fullgraph=True)
    compiled(logits)
    eager, other = kept
    assert other.student.feature_norm is not None
    assert not other.student.logits.requires_grad and not other.student.feature_norm.requires_grad
    assert other.statistics() == eager.statistics()


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_broken_teacher(value: float) -> None:
    logits = torch.zeros(8, 3)
    logits[6, 1] = value
    large = Prediction(torch.full((8, 3), 3e4, dtype=torch.float16))
    assert Step.of(STUDENT, large, None, {}).teacher_is_finite()
    assert not Step.of(STUDENT, Prediction(logits), None, {}).teacher_is_finite()


def test_a_broken_member_of_an_ensemble() -> None:
    broken = Prediction(TEACHER.logits * math.nan)
    ensemble = EnsemblePrediction.of([TEACHER, broken], [0.5, 0.5])
    assert not Step.of(STUDENT, ensemble, None, {}).teacher_is_finite()
