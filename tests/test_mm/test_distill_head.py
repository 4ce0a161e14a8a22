"""Weights, names and warm-up of the losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub

from fnkd_plugin import DistillHead, Prediction
from fnkd_plugin.losses import FNKDLoss, KDLoss
from tests.helpers import distilled, resnet, timm_teacher, train

pytestmark = pytest.mark.upstream

KD, FNKD = dict(type='KDLoss'), dict(type='FNKDLoss', tau=2.0)


def _pair() -> tuple[Prediction, Prediction]:
    random = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        Prediction(torch.randn(4, 3, generator=random), torch.rand(4, generator=random) + 1, torch.zeros(3))
        for _ in range(2)
    )


def _count(info: str, value: int) -> None:
    MessageHub.get_current_instance().update_info(info, value)


def test_one_soft_loss() -> None:
    student, teacher = _pair()
    head = DistillHead(KD)
    losses = head(student, teacher)
    assert list(losses) == ['loss_soft'] and not head.log_vars()
    assert torch.equal(losses['loss_soft'], KDLoss()(student, teacher))
    head = DistillHead(FNKDLoss(tau=2.0))
    assert list(head(student, teacher)) == ['loss_soft'] and head.log_vars() == {'tau': 2.0}


def test_several_soft_losses_are_named_after_their_classes() -> None:
    student, teacher = _pair()
    head = DistillHead([KD, FNKD, dict(type='KDLoss', temperature=1.0), dict(type='KDLoss', loss_weight=0.0)])
    losses = head(student, teacher)
    assert list(losses) == ['loss_soft_kd', 'loss_soft_fnkd', 'loss_soft_kd_2']
    assert torch.equal(losses['loss_soft_kd_2'], KDLoss(temperature=1.0)(student, teacher))
    assert head.log_vars() == {'tau_fnkd': 2.0}
    assert head.active and head.needs_feature_norm


def test_a_loss_without_weight_needs_nothing() -> None:
    assert not DistillHead(dict(type='KDLoss', loss_weight=0.0)).active
    assert not DistillHead([KD, dict(type='FNKDLoss', loss_weight=0.0)]).needs_feature_norm


def test_the_hard_loss_is_renamed_and_weighed() -> None:
    losses = dict(loss=torch.tensor(2.0), aux_loss=[torch.tensor(1.0)], accuracy=torch.tensor(50.0))
    assert DistillHead(KD).scale_hard(losses) == dict(loss_hard=2.0, aux_loss=[1.0], accuracy=50.0)
    scaled = DistillHead(KD, hard_weight=0.5).scale_hard(losses)
    assert scaled == dict(loss_hard=1.0, aux_loss=[0.5], accuracy=50.0)
    assert DistillHead(KD).scale_hard(losses)['loss_hard'] is losses['loss'], 'a weight of 1 is no operation'


@pytest.mark.parametrize(
    ('lengths', 'unit'), [(dict(epoch=8, iter=400), 'epoch'), (dict(epoch=1, iter=8), 'iter')], ids=['epochs', 'iters']
)
def test_warmup_factor(lengths: dict[str, int], unit: str) -> None:
    """In epoch (iteration) i of 8, counted from 1, and half of them: min(1, i / 4)."""
    student, teacher = _pair()
    head = DistillHead(KD, warmup=0.5)
    full = DistillHead(KD)(student, teacher)['loss_soft']
    hub = MessageHub.get_current_instance()
    for name, length in lengths.items():
        _count(f'max_{name}s', length)
    for done, factor in enumerate((0.25, 0.5, 0.75, 1.0, 1.0)):
        _count(unit, done)
        torch.testing.assert_close(head(student, teacher)['loss_soft'], full * factor)
    for name in (unit, 'max_epochs', 'max_iters'):
        hub.pop_info(name)


def test_warmup_without_a_runner_says_what_counts() -> None:
    hub = MessageHub.get_current_instance()
    hub.pop_info('epoch', None)
    with pytest.raises(RuntimeError, match=r'warmup needs a Runner, which counts epochs.*warmup=0'):
        DistillHead(KD, warmup=0.5)(*_pair())


@pytest.mark.parametrize(
    ('loop', 'factors'),
    [
        (dict(by_epoch=True, max_epochs=2), [0.5] * 4 + [1.0] * 4),
        (dict(by_epoch=True, max_epochs=1), [0.25, 0.5, 0.75, 1.0]),
        (dict(by_epoch=False, max_iters=8), [0.125 * i for i in range(1, 9)]),
    ],
    ids=['epochs', 'one epoch', 'iterations'],
)
def test_warmup_through_a_runner(loop: dict[str, Any], factors: list[float], tmp_path: Path) -> None:
    """With a learning rate of 0 and no shuffling, an epoch repeats but for the factor."""
    options = dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)), train_cfg=loop)
    soft = []
    for i, head in enumerate((dict(warmup=1.0), {})):
        runner = train(distilled(resnet(), timm_teacher(tmp_path), **head), tmp_path / str(i), **options)
        soft.append(torch.tensor(runner.message_hub.get_scalar('train/loss_soft').data[0]))
    torch.testing.assert_close(soft[0] / soft[1], torch.tensor(factors, dtype=soft[0].dtype), rtol=1e-5, atol=0)
