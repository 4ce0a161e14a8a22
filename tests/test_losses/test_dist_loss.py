"""DIST against NumPy's correlations, and what it does not ask of the student."""

import numpy as np
import pytest
import torch

from fnkd_plugin import Prediction
from fnkd_plugin.losses import DISTLoss

pytestmark = pytest.mark.upstream

N, K, T = 6, 5, 4.0
random = torch.Generator().manual_seed(0)
Z, V = (3 * torch.randn(N, K, generator=random, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(('beta', 'gamma'), [(2.0, 0.0), (0.0, 3.0), (2.0, 2.0)])
def test_it_is_one_less_the_mean_correlation_of_rows_and_of_columns(beta: float, gamma: float) -> None:
    p, q = ((x / T).softmax(1).numpy() for x in (Z, V))
    inter = np.mean([1 - np.corrcoef(p[n], q[n])[0, 1] for n in range(N)])
    intra = np.mean([1 - np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(K)])
    found = DISTLoss(beta, gamma, T, loss_weight=0.5)(Prediction(Z), Prediction(V))
    assert found.item() == pytest.approx(0.5 * T**2 * (beta * inter + gamma * intra), abs=1e-12)


def test_the_gradient_is_right() -> None:
    loss = DISTLoss(temperature=T)
    assert torch.autograd.gradcheck(lambda z: loss(Prediction(z), Prediction(V)), Z.clone().requires_grad_())


def test_smoothed_probabilities_of_the_teacher_have_zero_loss() -> None:
    """Correlations do not see an affine map, as label smoothing of the teacher is one; a cross-entropy does."""
    q = V.softmax(1)
    z = (0.4 * q + 0.6 / K).log().requires_grad_()
    loss = DISTLoss()(Prediction(z), Prediction(V))
    (grad,) = torch.autograd.grad(loss, z)
    assert abs(loss.item()) < 1e-12 and grad.abs().max() < 1e-12


def test_the_second_term_alone_sees_other_images() -> None:
    """A batch's rows are independent in the first term; in the second, each image's gradient depends on the rest."""
    for weights, alone in ((dict(gamma=0.0), True), (dict(beta=0.0), False)):
        grads = []
        for size in (N, N - 1):
            z = Z[:size].clone().requires_grad_()
            (grad,) = torch.autograd.grad(size * DISTLoss(**weights)(Prediction(z), Prediction(V[:size])), z)
            grads.append(grad[0])
        assert torch.allclose(*grads, rtol=0, atol=1e-12) == alone


def test_classes_that_hardly_appear_count_as_any_other() -> None:
    """Teacher and student give the last class 1e-5 of the other classes' probability, and correlate there as before."""
    z, v = Z.clone(), V.clone()
    rare = torch.tensor([0.0] * (K - 1) + [-11.5], dtype=torch.float64)
    p, q = (z + rare).softmax(1), (v + rare).softmax(1)
    rho = np.mean([np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(K)])
    found = DISTLoss(beta=0.0, gamma=1.0)(Prediction((z + rare).float()), Prediction((v + rare).float()))
    assert found.item() == pytest.approx(1 - rho, abs=1e-5)


def test_one_image_and_equal_logits_have_finite_gradients() -> None:
    z = torch.zeros(1, K, requires_grad=True)
    (grad,) = torch.autograd.grad(DISTLoss()(Prediction(z), Prediction(V[:1].float())), z)
    assert grad.isfinite().all() and 0 < grad.norm() < 10
    (grad,) = torch.autograd.grad(DISTLoss(beta=0.0)(Prediction(z), Prediction(V[:1].float())), z)
    assert (grad == 0).all(), 'a batch of one has no columns to correlate'


@pytest.mark.parametrize('spread', [1.0, 20.0, 60.0])
@pytest.mark.parametrize('count', [1, 5])
def test_identical_predictions_cost_nothing(spread: float, count: int) -> None:
    """Also where a class hardly appears: with a spread of 60 the least probabilities are below 1e-30."""
    z = spread * torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    z = z.requires_grad_()
    loss = DISTLoss()(Prediction(z), Prediction(z.detach()))
    assert loss.item() == pytest.approx(0, abs=1e-5)
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.isfinite().all() and grad.abs().max() < 1e-4


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match='DISTLoss: the batch is empty'):
        DISTLoss()(Prediction(torch.empty(0, 5)), Prediction(torch.empty(0, 5)))
