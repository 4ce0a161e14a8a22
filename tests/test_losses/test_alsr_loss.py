"""ALSR as a hard-label loss."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses import ALSRLoss, LSRLoss
from tests.helpers import CLASSES, build, distilled, raw_batch, resnet, timm_teacher, train

pytestmark = pytest.mark.upstream

GROUPS = ['gull', 'tern', 'gull', 'auk', 'gull', 'tern']
K = len(GROUPS)


def _alsr(**options: Any) -> dict:
    return dict(type='ALSRLoss', groups=['a', 'a', 'b', 'a'], **options)


def test_the_target_by_hand() -> None:
    """Eq. 3, entry by entry."""
    loss = ALSRLoss(0.06, 0.2, groups=GROUPS)
    expected = [[0.74 + 0.01, 0.01, 0.11, 0.01, 0.11, 0.01], [0.01, 0.01, 0.01, 0.95, 0.01, 0.01]]
    torch.testing.assert_close(loss.target(torch.tensor([0, 3]), K), torch.tensor(expected))


def test_the_loss_is_cross_entropy_with_the_target_and_its_gradient_their_difference() -> None:
    loss, z, labels = ALSRLoss(groups=GROUPS), torch.randn(8, K, requires_grad=True), torch.randint(K, (8,))
    found = loss(z, labels)
    target = loss.target(labels, K)
    torch.testing.assert_close(found, -(target * z.log_softmax(1)).sum(1).mean())
    (grad,) = torch.autograd.grad(found, z)
    torch.testing.assert_close(grad, (z.softmax(1) - target) / 8)


def test_without_the_near_part_it_is_lsr() -> None:
    z, labels = torch.randn(8, K), torch.randint(K, (8,))
    torch.testing.assert_close(ALSRLoss(0.1, 0.0, groups=GROUPS)(z, labels), LSRLoss(0.1)(z, labels))


def test_mixed_labels_mix_the_targets() -> None:
    loss, z = ALSRLoss(groups=GROUPS), torch.randn(1, K)
    mixed = 0.3 * F.one_hot(torch.tensor([1]), K) + 0.7 * F.one_hot(torch.tensor([3]), K)
    parts = [loss(z, torch.tensor([k])) for k in (1, 3)]
    torch.testing.assert_close(loss(z, mixed), 0.3 * parts[0] + 0.7 * parts[1])


@pytest.mark.parametrize('options', [{}, dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))])
def test_any_head_trains_with_it(options: dict) -> None:
    student = resnet(**options)
    student['head']['loss'] = _alsr(eps_uniform=0.1, eps_near=0.3)
    model = build(student)
    data = model.data_preprocessor(raw_batch(), training=True)
    loss = model(**data, mode='loss')['loss']
    labels = torch.stack([getattr(s, 'gt_score', F.one_hot(s.gt_label[0], 4).float()) for s in data['data_samples']])
    near = torch.tensor([[0, 0.5, 0, 0.5], [0.5, 0, 0, 0.5], [0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    true = torch.tensor([0.6, 0.6, 0.9, 0.6]).diag()
    target = labels @ (true + 0.3 * near + 0.1 / 4)
    torch.testing.assert_close(loss, -(target * model(data['inputs']).log_softmax(1)).sum(1).mean())


def test_beside_a_teacher(tmp_path: Path) -> None:
    student = resnet()
    student['head']['loss'] = _alsr()
    model = build(distilled(student, timm_teacher(tmp_path)))
    losses = model(**model.data_preprocessor(raw_batch(), training=True), mode='loss')
    plain = build(student)
    alone = plain(**plain.data_preprocessor(raw_batch(), training=True), mode='loss')
    torch.testing.assert_close(losses['loss_hard'], alone['loss'])
    assert losses['loss_soft'] > 0


def test_checkpoints_are_the_plain_students(tmp_path: Path) -> None:
    student = resnet()
    plain = build(student)
    student['head']['loss'] = _alsr()
    runner = train(student, tmp_path)
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['state_dict']
    assert list(saved) == list(plain.state_dict())
    assert len(copy.deepcopy(runner.model).head.loss_module.neighbours.index) == CLASSES
    plain.load_state_dict(saved, strict=True)


def test_half_precision_logits_are_computed_in_fp32() -> None:
    loss, z, labels = ALSRLoss(groups=GROUPS), torch.randn(8, K).bfloat16(), torch.randint(K, (8,))
    assert torch.equal(loss(z, labels), loss(z.float(), labels))


def test_the_log_says_how_many_classes_have_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('fnkd_plugin.losses.alsr_loss._logger.info', said.append)
    ALSRLoss(groups=GROUPS)
    assert said == ['ALSRLoss: 5 of 6 classes have neighbours, 1 to 2 each; one without any gets LSR with eps 0.1.']


def test_another_number_of_classes_is_refused_with_both_numbers() -> None:
    with pytest.raises(SetupError, match=r'the classifier has 5 classes, the groups are of 6'):
        ALSRLoss(groups=GROUPS)(torch.randn(2, 5), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(eps_uniform=0.5, eps_near=0.5), r'eps_uniform \+ eps_near must be < 1.* is 0\.5 \+ 0\.5'),
        (dict(eps_near=-0.1), r'eps_near must be a finite number >= 0 and < 1, but is -0\.1'),
        (dict(eps_uniform=float('nan')), 'eps_uniform must be a finite number .* is nan'),
        (dict(groups=['a', 'b', 'c']), 'no class has a neighbour .* or use LSRLoss'),
        (dict(groups='dogs'), "'dogs' is not one of cub, cifar100, cars_make, cars_body"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        MODELS.build(dict(type='ALSRLoss', **{'groups': GROUPS, **options}))


def test_classes_of_imagenet_21k_take_little_memory() -> None:
    """A table of K x K would be 1.9 GB."""
    groups = [i // 20 for i in range(21841)]
    loss = ALSRLoss(groups=groups)
    assert sum(buffer.nbytes for buffer in loss.buffers()) < 10e6
    labels = torch.tensor([0, 21840])
    target = loss.target(labels, 21841)
    assert target.sum(1).tolist() == pytest.approx([1, 1], rel=1e-5)
    assert target[0, 1].item() == pytest.approx(0.1 / 19 + 0.1 / 21841) and (target > 0.1 / 21841 * 1.01).sum() == 21
    assert torch.allclose(loss.target(torch.nn.functional.one_hot(labels, 21841), 21841), target)
