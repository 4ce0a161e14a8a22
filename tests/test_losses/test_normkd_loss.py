"""NormKD against its definition, and where it is KD and logit standardisation."""

import pytest
import torch

from fnkd_plugin import Prediction
from fnkd_plugin.losses import KDLoss, LSKDLoss, NormKDLoss

pytestmark = pytest.mark.upstream

N, K, T = 5, 7, 2.0
random = torch.Generator().manual_seed(0)
SPREAD = torch.tensor([0.5, 1.0, 2.0, 3.0, 5.0], dtype=torch.float64)[:, None]
Z, V = (SPREAD * torch.randn(N, K, generator=random, dtype=torch.float64) for _ in range(2))


def test_it_is_kd_of_each_image_at_its_own_two_temperatures() -> None:
    z = Z.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in zip(z, V, strict=True):
        t_s, t_t = T * student.std(correction=0), T * teacher.std(correction=0)
        total = total - t_t**2 * ((teacher / t_t).softmax(0) * (student / t_s).log_softmax(0)).sum()
    found = NormKDLoss(T, loss_weight=0.9)(Prediction(z), Prediction(V))
    torch.testing.assert_close(found, 0.9 * total / N, rtol=0, atol=1e-10)
    mine, theirs = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (found, 0.9 * total / N))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_logits_of_one_spread_are_kd_at_one_temperature() -> None:
    z, v = (4 * x / x.std(dim=1, correction=0, keepdim=True) for x in (Z, V))
    torch.testing.assert_close(
        NormKDLoss(T)(Prediction(z), Prediction(v)), KDLoss(temperature=4 * T)(Prediction(z), Prediction(v))
    )


def test_a_teacher_of_unit_spread_makes_it_logit_standardisation() -> None:
    v = Prediction(V / V.std(dim=1, correction=0, keepdim=True))
    torch.testing.assert_close(NormKDLoss(T, 1.0)(Prediction(Z), v), LSKDLoss(T, 1.0)(Prediction(Z), v))


def test_an_image_weighs_as_the_square_of_the_teachers_spread() -> None:
    one, three = (NormKDLoss(T)(Prediction(Z), Prediction(c * V)) for c in (1, 3))
    torch.testing.assert_close(three, 9 * one)


def test_equal_logits_of_a_new_classifier_have_a_finite_gradient() -> None:
    z = torch.zeros(N, K, requires_grad=True)
    (grad,) = torch.autograd.grad(NormKDLoss()(Prediction(z), Prediction(V.float())), z)
    assert grad.isfinite().all() and 0 < grad.norm() < 100
