"""DKD against its definition by probabilities, its identity with KD, and what each of its terms moves."""

import pytest
import torch

from fnkd_plugin import Prediction
from fnkd_plugin.losses import DKDLoss, KDLoss

pytestmark = pytest.mark.upstream

N, K, T = 5, 7, 4.0
random = torch.Generator().manual_seed(0)
Z, V = (3 * torch.randn(N, K, generator=random, dtype=torch.float64) for _ in range(2))
LABELS = torch.tensor([0, 3, 6, 3, 1])


def test_it_is_both_terms_of_the_paper_plus_the_teachers_entropies() -> None:
    z = Z.clone().requires_grad_()
    divergence, entropy = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    for student, teacher, label in zip(z, V, LABELS.tolist(), strict=True):
        p, q = (student / T).softmax(0), (teacher / T).softmax(0)
        others = [k for k in range(K) if k != label]
        pairs = [torch.stack([x[label], 1 - x[label]]) for x in (p, q)]
        rests = [x[others] / (1 - x[label]) for x in (p, q)]
        for weight, (a, b) in ((1.5, pairs), (8.0, rests)):
            divergence = divergence + weight * (b * (b / a).log()).sum()
            entropy = entropy - weight * (b * b.log()).sum()
    found = DKDLoss(alpha=1.5, beta=8.0, temperature=T, loss_weight=0.7)(Prediction(z), Prediction(V), LABELS)
    scale = 0.7 * T**2 / N
    torch.testing.assert_close(found, scale * (divergence + entropy), rtol=0, atol=1e-10)
    mine, theirs = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (found, scale * divergence))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize('image', range(N))
def test_kd_is_dkd_with_the_teachers_doubt_as_beta(image: int) -> None:
    z, v, label = Prediction(Z[[image]]), Prediction(V[[image]]), LABELS[[image]]
    doubt = 1 - (v.logits / T).softmax(1)[0, label.item()]
    found = DKDLoss(alpha=1.0, beta=doubt.item(), temperature=T)(z, v, label)
    torch.testing.assert_close(found, KDLoss(temperature=T)(z, v), rtol=0, atol=1e-10)


def test_the_second_term_leaves_the_true_class_alone_and_the_first_the_ratios_of_the_others() -> None:
    z = Z.clone().requires_grad_()
    others = torch.ones(N, K, dtype=torch.bool).scatter_(1, LABELS[:, None], False)
    tckd, nckd = (
        DKDLoss(*weights, temperature=T)(Prediction(z), Prediction(V), LABELS) for weights in ((1, 0), (0, 1))
    )
    (grad,) = torch.autograd.grad(nckd, z)
    assert (grad[~others] == 0).all() and grad[others].abs().min() > 1e-6
    (grad,) = torch.autograd.grad(tckd, z)
    p = (Z / T).softmax(1)
    shares = (grad / p)[others].view(N, K - 1)
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares))


def test_the_label_is_read() -> None:
    loss = DKDLoss()
    assert loss(Prediction(Z), Prediction(V), LABELS) != loss(Prediction(Z), Prediction(V), (LABELS + 1) % K)


def test_two_classes_have_no_others_to_compare() -> None:
    z, v, labels = Prediction(Z[:, :2]), Prediction(V[:, :2]), LABELS % 2
    torch.testing.assert_close(DKDLoss(1, 8, T)(z, v, labels), KDLoss(T)(z, v))


@pytest.mark.parametrize('side', [-1000.0, 1000.0])
def test_a_certain_student_has_finite_loss_and_gradient(side: float) -> None:
    """Where 1 - p_t or p_t is 0 in fp32."""
    z = torch.zeros(N, K).scatter_(1, LABELS[:, None], side).requires_grad_()
    loss = DKDLoss(temperature=1.0)(Prediction(z), Prediction(V.float()), LABELS)
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.isfinite() and grad.isfinite().all() and grad.norm() > 0


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r'DKDLoss: the images have no labels'):
        DKDLoss()(Prediction(Z), Prediction(V))


def test_labels_of_the_clean_images_count_for_their_augmented_copies() -> None:
    """As in timm, whose batches of augmented splits have the labels of the first split."""
    random = torch.Generator().manual_seed(0)
    student, teacher = (Prediction(torch.randn(6, 8, generator=random)) for _ in range(2))
    labels = torch.tensor([3, 5])
    assert torch.equal(DKDLoss()(student, teacher, labels), DKDLoss()(student, teacher, labels.repeat(3)))
    with pytest.raises(ValueError, match='8 classes, 6 images and 4 labels'):
        DKDLoss()(student, teacher, torch.arange(4))


def test_one_class_is_refused() -> None:
    one = Prediction(torch.zeros(2, 1))
    with pytest.raises(ValueError, match='got 1 classes'):
        DKDLoss()(one, one, torch.zeros(2, dtype=torch.long))
