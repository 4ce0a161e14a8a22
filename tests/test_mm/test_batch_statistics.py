"""What the log shows."""

import pytest
import torch

from fnkd_plugin import Prediction
from fnkd_plugin.mm.batch_statistics import batch_statistics

pytestmark = pytest.mark.upstream

STUDENT = Prediction(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
TEACHER = Prediction(torch.eye(3)[[0, 2, 2]], torch.tensor([4.0, 5.0, 9.0]), torch.zeros(3))


def test_agreement_accuracy_and_norms() -> None:
    found = batch_statistics(STUDENT, TEACHER, torch.tensor([1, 2, 2]))
    assert {k: round(v.item(), 4) for k, v in found.items()} == dict(
        agreement=0.6667, teacher_acc=0.6667, teacher_norm=6.0, student_norm=2.0
    )
    assert not [name for name in found if 'loss' in name], 'MMEngine sums every key with "loss" in it'


def test_what_is_unknown_is_left_out() -> None:
    assert list(batch_statistics(Prediction(STUDENT.logits), Prediction(TEACHER.logits), None)) == ['agreement']


def test_no_gradient_is_kept() -> None:
    logits = torch.eye(3, requires_grad=True)
    student = Prediction(logits, logits.norm(dim=1), None)
    assert not any(v.requires_grad for v in batch_statistics(student, TEACHER, None).values())
