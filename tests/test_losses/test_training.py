"""The newer soft losses through the real Runner."""

from pathlib import Path

import pytest
import torch

from tests.helpers import build, distilled, resnet, timm_teacher, train

pytestmark = pytest.mark.upstream

NEWER = {
    'DKDLoss': dict(),
    'DISTLoss': dict(temperature=4.0),
    'LSKDLoss': dict(),
    'NormKDLoss': dict(),
}


@pytest.mark.parametrize('kind', NEWER)
def test_the_soft_loss_alone_falls(kind: str, tmp_path: Path) -> None:
    """On one batch again and again, without the hard loss; the checkpoint is the plain student's."""
    model = distilled(resnet(), timm_teacher(tmp_path), dict(type=kind, **NEWER[kind]), hard_weight=0.0)
    runner = train(
        model,
        tmp_path,
        train_dataloader=dict(
            batch_size=16,
            num_workers=0,
            dataset=dict(type='RandomImages', pipeline=[dict(type='PackInputs')]),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=6),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
    )
    soft = runner.message_hub.get_scalar('train/loss_soft').data[0]
    assert len(soft) == 6 and soft[-1] < soft[0]
    saved = torch.load(tmp_path / 'epoch_6.pth', weights_only=False)['state_dict']
    assert list(saved) == list(build(resnet()).state_dict())


def test_dkd_and_dist_together_under_mixup(tmp_path: Path) -> None:
    """DKD takes the heavier label; each has its own name in the log, and their sum is what is trained."""
    student = resnet(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))
    losses = [dict(type=kind, **options) for kind, options in NEWER.items()][:2]
    small = dict(optimizer=dict(type='SGD', lr=1e-4))  # at larger rates the training diverges on some processors
    runner = train(distilled(student, timm_teacher(tmp_path), losses, warmup=0.5), tmp_path, optim_wrapper=small)
    log = {name: runner.message_hub.get_scalar(f'train/{name}').data[0] for name in (
        'loss', 'loss_hard', 'loss_soft_dkd', 'loss_soft_dist',
    )}  # fmt: skip
    parts = log['loss_hard'] + log['loss_soft_dkd'] + log['loss_soft_dist']
    torch.testing.assert_close(torch.tensor(log['loss']), torch.tensor(parts), rtol=1e-5, atol=1e-5)
    assert (log['loss_soft_dist'] > 0).all() and (log['loss_soft_dkd'] > 0).all()
