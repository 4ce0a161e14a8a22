"""A distilled model's training step against the authors' scheme, written here without any of our code.

Their networks return two logit vectors: x1 = W f + b, and x2 = W (f / r min(r, tau)) + b. The loss is
CE(x1, y) + lambda^2 H(softmax of the teacher's x2, softmax of the student's x2).
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import CLASSES, MEAN, STD, build, distilled, raw_batch, resnet, timm_checkpoint, timm_teacher

pytestmark = pytest.mark.upstream

WEIGHT = 9.0


def _student(config: dict) -> Any:
    """A student in fp64 (the backward pass of batch norm amplifies rounding), with a classifier of large weights."""
    model = build(config).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.head.fc.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return model


def _two_logits(f: Tensor, layer: nn.Linear, tau: float) -> tuple[Tensor, Tensor]:
    r = f.norm(p=2, dim=1, keepdim=True)
    return layer(f), layer(f / r * r.clamp(max=tau))


@pytest.mark.parametrize(('tau', 'clipped'), [(1.5, 16), (2.83, None), (9.0, 0)], ids=['all', 'some', 'none'])
def test_a_training_step_is_the_authors(tmp_path: Path, tau: float, clipped: int | None) -> None:
    """Loss and all gradients to 1e-6, with all, some and none of the norms clipped."""
    student = _student(resnet())
    teacher = timm.create_model('test_resnet', num_classes=CLASSES, checkpoint_path=str(timm_checkpoint(tmp_path)))
    data = student.data_preprocessor(raw_batch(8), training=True)
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    f = student.backbone(data['inputs'])[-1].mean((2, 3))
    with torch.no_grad():
        teacher.eval()
        f_t = teacher.forward_head(teacher.forward_features(data['inputs'].float()), pre_logits=True)
        q = _two_logits(f_t, teacher.fc, tau)[1].softmax(1).double()
    norms = torch.stack([f.norm(dim=1), f_t.norm(dim=1)])
    if clipped is None:
        assert (norms > tau).any(1).all() and (norms < tau).any(1).all()
    else:
        assert (norms > tau).sum() == clipped
    x1, x2 = _two_logits(f, student.head.fc, tau)
    hard, soft = F.cross_entropy(x1, labels), -WEIGHT * (q * x2.log_softmax(1)).sum(1).mean()
    (hard + soft).backward()

    taught = timm_teacher(tmp_path, mean=MEAN, std=STD)
    ours = _student(distilled(resnet(), taught, dict(type='FNKDLoss', tau=tau, loss_weight=WEIGHT, mode='clip')))
    losses = ours(**data, mode='loss')
    (losses['loss_hard'] + losses['loss_soft']).backward()

    torch.testing.assert_close(losses['loss_hard'], hard, rtol=1e-6, atol=0, check_dtype=False)
    torch.testing.assert_close(losses['loss_soft'], soft, rtol=1e-6, atol=0, check_dtype=False)
    assert soft > 1
    theirs = dict(student.named_parameters())
    for name, parameter in ours.named_parameters():
        difference = (parameter.grad - theirs[name].grad).norm()
        assert difference <= 1e-6 * theirs[name].grad.norm(), name
