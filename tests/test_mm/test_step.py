"""Tensors of distillation steps for the log."""

import math

import pytest
import torch

from fnkd_plugin import Prediction
from fnkd_plugin.mm.step import Step, first_broken, means
from fnkd_plugin.prediction import EnsemblePrediction

pytestmark = pytest.mark.upstream

STUDENT = Prediction(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
TEACHER = Prediction(torch.eye(3)[[0, 2, 2]], torch.tensor([4.0, 5.0, 9.0]), torch.zeros(3))


def test_agreement_accuracy_norms_and_hard_loss() -> None:
    found = means([Step.of(STUDENT, TEACHER, torch.tensor([1, 2, 2]), torch.tensor(0.5))])
    assert {name: round(value, 4) for name, value in found.items()} == dict(
        agreement=0.6667, teacher_acc=0.6667, teacher_norm=6.0, student_norm=2.0, hard_ce=0.5
    )
    assert not [name for name in found if 'loss' in name], 'MMEngine sums every key with "loss" in it'


def test_means_over_all_images_of_a_window() -> None:
    one = Prediction(torch.eye(3)[:1], torch.tensor([8.0]))
    steps = [
        Step.of(STUDENT, TEACHER, torch.tensor([0, 2, 2]), torch.tensor(1.0)),
        Step.of(one, one, torch.tensor([2]), torch.tensor(2.0)),
    ]
    assert means(steps) == dict(agreement=0.75, teacher_acc=0.75, teacher_norm=6.5, student_norm=3.5, hard_ce=1.5)


def test_what_is_unknown_is_left_out() -> None:
    assert list(means([Step.of(Prediction(STUDENT.logits), Prediction(TEACHER.logits))])) == ['agreement']


def test_no_gradient_is_kept() -> None:
    logits = torch.eye(3, requires_grad=True)
    step = Step.of(Prediction(logits, logits.norm(dim=1), None), TEACHER, None, logits.sum())
    assert not any(x.requires_grad for x in step if x is not None)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_the_first_broken_step(value: float) -> None:
    logits = torch.zeros(8, 3)
    logits[6, 1] = value
    fine, broken = Prediction(torch.full((8, 3), 3e4, dtype=torch.float16)), Prediction(logits)
    steps = [Step.of(STUDENT, teacher) for teacher in (fine, broken, fine, broken)]
    assert first_broken(steps) == 1 and first_broken(steps[:1]) is None and first_broken([]) is None


def test_a_broken_member_of_an_ensemble() -> None:
    broken = Prediction(TEACHER.logits * math.nan)
    assert first_broken([Step.of(STUDENT, EnsemblePrediction.of([TEACHER, broken], [0.5, 0.5]))]) == 0
