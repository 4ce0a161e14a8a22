"""TTM, WTTM and TTM by the norm: closed forms, gradients, limits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin import Prediction
from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import scale_by_feature_norm
from fnkd_plugin.losses import FNTTMLoss, KDLoss, SoftTargetLoss, TTMLoss, WTTMLoss
from fnkd_plugin.losses.scaled_logits import ScaledLogits

N, K, D = 6, 5, 4


def _prediction(seed: int) -> Prediction:
    random = torch.Generator().manual_seed(seed)
    f, W, b = (3 * torch.randn(*s, generator=random, dtype=torch.float64) for s in ((N, D), (K, D), (K,)))
    return Prediction(F.linear(f, W, b), f.norm(dim=1), b)


def _student() -> tuple[Tensor, Prediction]:
    z = _prediction(0).logits.requires_grad_()
    return z, Prediction(z)


@pytest.mark.parametrize('gamma', [0.3, 1.0])
def test_the_target_is_the_power_transform_of_the_teachers_probabilities(gamma: float) -> None:
    z, student = _student()
    teacher = _prediction(1)
    power = teacher.logits.softmax(1) ** gamma
    q = power / power.sum(1, keepdim=True)
    loss = TTMLoss(gamma, loss_weight=7.0)(student, teacher)
    torch.testing.assert_close(loss, 7 * F.cross_entropy(z, q))
    (grad,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(grad, 7 / N * (z.softmax(1) - q).detach())


def test_an_image_of_wttm_weighs_the_sum_of_its_powers() -> None:
    z, student = _student()
    teacher = _prediction(1)
    power = teacher.logits.softmax(1) ** 0.3
    each = F.cross_entropy(z, power / power.sum(1, keepdim=True), reduction='none')
    torch.testing.assert_close(WTTMLoss(0.3, 1.5)(student, teacher), 1.5 * (power.sum(1) * each).mean())


def test_wttm_weights_of_one_hot_and_uniform_teachers() -> None:
    sure, ignorant = torch.tensor([[500.0, 0, 0, 0, 0]]), torch.zeros(1, K)
    weights = [WTTMLoss(0.3).sample_weight(Prediction(x), ScaledLogits(x)) for x in (sure, ignorant)]
    torch.testing.assert_close(torch.cat(weights), torch.tensor([1.0, K**0.7]))


def test_ttm_by_the_norm_tempers_the_teacher_as_fnkd_does_and_leaves_the_student() -> None:
    z, student = _student()
    teacher = _prediction(1)
    q = scale_by_feature_norm(*teacher, tau=2.0).softmax(1)
    torch.testing.assert_close(FNTTMLoss(tau=2.0, loss_weight=7.0)(student, teacher), 7 * F.cross_entropy(z, q))


@pytest.mark.parametrize('loss', [TTMLoss(1.0, 1.0), WTTMLoss(1.0, 1.0)])
def test_at_gamma_1_it_is_kd_at_temperature_1(loss: SoftTargetLoss) -> None:
    _, student = _student()
    teacher = _prediction(1)
    torch.testing.assert_close(loss(student, teacher), KDLoss(1.0)(student, teacher))


@pytest.mark.parametrize('kind', [TTMLoss, WTTMLoss])
@pytest.mark.parametrize('gamma', [0.0, -1.0, float('nan')])
def test_gamma_must_be_positive(kind: type[TTMLoss], gamma: float) -> None:
    with pytest.raises(SetupError, match=f'{kind.__name__}: gamma'):
        kind(gamma)
