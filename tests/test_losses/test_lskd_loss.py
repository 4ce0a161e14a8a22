"""Logit standardisation against the z-scores and the divergence of its paper, and what it leaves the student."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin import Prediction
from fnkd_plugin.losses import LSKDLoss

pytestmark = pytest.mark.upstream

N, K, T, WEIGHT = 5, 7, 2.0, 9.0
random = torch.Generator().manual_seed(0)
Z, V = (3 * torch.randn(N, K, generator=random, dtype=torch.float64) + 1 for _ in range(2))


def _z_score(x: Tensor) -> Tensor:
    """Algorithm 1, one image at a time."""
    rows = []
    for row in x:
        mean = row.sum() / K
        rows.append((row - mean) / (((row - mean) ** 2).sum() / K).sqrt() / T)
    return torch.stack(rows)


def test_it_is_the_papers_divergence_plus_the_teachers_entropy() -> None:
    z = Z.clone().requires_grad_()
    q = _z_score(V).softmax(1)
    divergence = F.kl_div(_z_score(z).log_softmax(1), q, reduction='batchmean')
    found = LSKDLoss(T, WEIGHT)(Prediction(z), Prediction(V))
    expected = WEIGHT * T**2 * (divergence + torch.distributions.Categorical(q).entropy().mean())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    mine, theirs = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (found, WEIGHT * T**2 * divergence))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_shift_and_range_of_both_are_free() -> None:
    loss = LSKDLoss(T, WEIGHT)
    found = loss(Prediction(0.1 * Z - 4), Prediction(7 * V + 3))
    torch.testing.assert_close(found, loss(Prediction(Z), Prediction(V)), rtol=0, atol=1e-10)


def test_the_gradient_changes_neither_mean_nor_range() -> None:
    z = Z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(LSKDLoss()(Prediction(z), Prediction(V)), z)
    assert grad.abs().max() > 1e-2
    assert grad.sum(1).abs().max() < 1e-12 and (grad * z).sum(1).abs().max() < 1e-12


def test_the_teachers_relations_in_another_range_are_the_minimum() -> None:
    z = (0.05 * V + 2).requires_grad_()
    (grad,) = torch.autograd.grad(LSKDLoss()(Prediction(z), Prediction(V)), z)
    assert grad.abs().max() < 1e-12


def test_equal_logits_of_a_new_classifier_have_a_finite_gradient() -> None:
    z = torch.zeros(N, K, requires_grad=True)
    (grad,) = torch.autograd.grad(LSKDLoss()(Prediction(z), Prediction(V.float())), z)
    assert grad.isfinite().all() and 0 < grad.norm() < 100
