"""LSR as a hard-label loss."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.losses import LabelSmoothLoss

from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses import LSRLoss
from tests.helpers import build, raw_batch, resnet

pytestmark = pytest.mark.upstream

K = 5


@pytest.mark.parametrize('eps', [0.0, 0.1, 0.9])
def test_lsr_loss_is_pytorchs_label_smoothing(eps: float) -> None:
    z, labels = torch.randn(8, K), torch.randint(K, (8,))
    torch.testing.assert_close(LSRLoss(eps)(z, labels), F.cross_entropy(z, labels, label_smoothing=eps))


def test_lsr_loss_is_mmpretrains_original_label_smoothing() -> None:
    z, labels = torch.randn(8, K), torch.randint(K, (8,))
    theirs = LabelSmoothLoss(0.1, num_classes=K, mode='original')
    torch.testing.assert_close(LSRLoss(0.1)(z, labels), theirs(z, labels))


def test_mixed_labels_sample_weights_and_averaging() -> None:
    z, labels = torch.randn(4, K), torch.randint(K, (4,))
    one_hot = F.one_hot(labels, K).float()
    torch.testing.assert_close(LSRLoss()(z, one_hot), LSRLoss()(z, labels))
    each = torch.stack([LSRLoss()(z[i : i + 1], labels[i : i + 1]) for i in range(4)])
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    torch.testing.assert_close(LSRLoss()(z, labels, weight=weight), (each * weight).sum() / 4)
    torch.testing.assert_close(LSRLoss(loss_weight=3.0)(z, labels, avg_factor=2), 3 * each.sum() / 2)


def test_bf16_logits_are_computed_in_fp32() -> None:
    z, labels = torch.randn(8, K).bfloat16(), torch.randint(K, (8,))
    assert torch.equal(LSRLoss()(z, labels), LSRLoss()(z.float(), labels))
    assert LSRLoss()(z, labels).dtype == torch.float32


@pytest.mark.parametrize('options', [{}, dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))])
def test_lsr_loss_trains_any_head(options: dict) -> None:
    student = resnet(**options)
    student['head']['loss'] = dict(type='LSRLoss', eps=0.2)
    model = build(student)
    data = model.data_preprocessor(raw_batch(), training=True)
    loss = model(**data, mode='loss')['loss']
    logits = model(data['inputs'])
    target = torch.stack([getattr(s, 'gt_score', F.one_hot(s.gt_label[0], 4).float()) for s in data['data_samples']])
    expected = -((0.8 * target + 0.2 / 4) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(('name', 'value'), [('eps', 1.0), ('eps', -0.1), ('eps', float('nan')), ('loss_weight', -1)])
def test_bad_numbers_are_refused(name: str, value: float) -> None:
    with pytest.raises(SetupError, match=f'LSRLoss: {name} must be a finite number >= 0.*but is {value}'):
        LSRLoss(**{name: value})
