"""Several teachers as one."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmpretrain.registry import MODELS
from torch import Tensor

from fnkd_plugin import DistillHead, Prediction
from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import scale_by_feature_norm
from fnkd_plugin.losses import DKDLoss, FNKDLoss, KDLoss, NormKDLoss, SoftLoss
from fnkd_plugin.prediction import EnsemblePrediction
from fnkd_plugin.teachers import EnsembleTeacher, PixelFormat, TimmTeacher
from tests.helpers import CLASSES, MEAN, SIZE, STD, build, distilled, resnet, timm_checkpoint, timm_teacher, train

pytestmark = pytest.mark.upstream

IMAGES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
SOURCE = PixelFormat.of(MEAN, STD, 'rgb')


def _prediction(seed: int, norm: float = 3.0) -> Prediction:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, CLASSES, generator=random, dtype=torch.float64)
    return Prediction(logits, norm + torch.rand(6, generator=random).double(), torch.randn(CLASSES).double())


STUDENT, A, B = _prediction(0), _prediction(1), _prediction(2, norm=8.0)
BOTH = EnsemblePrediction.of([A, B], [0.25, 0.75])


def _cross_entropy(target: Tensor, z: Tensor) -> Tensor:
    return -(target * z.log_softmax(1)).sum(1).mean()


def test_logits_are_those_of_the_mean_distribution() -> None:
    mean = 0.25 * A.logits.softmax(1) + 0.75 * B.logits.softmax(1)
    torch.testing.assert_close(BOTH.logits.softmax(1), mean)
    torch.testing.assert_close(BOTH.feature_norm, 0.25 * A.feature_norm + 0.75 * B.feature_norm)
    assert EnsemblePrediction.of([A, Prediction(B.logits)], [0.5, 0.5]).feature_norm is None


def test_a_probability_of_zero_leaves_the_logits_finite() -> None:
    sure = Prediction(torch.tensor([[1e4, 0.0]]))
    assert EnsemblePrediction.of([sure, sure], [0.5, 0.5]).logits.isfinite().all()


def test_kd_is_the_cross_entropy_with_the_mean_after_the_temperature() -> None:
    mean = 0.25 * (A.logits / 4).softmax(1) + 0.75 * (B.logits / 4).softmax(1)
    expected = 16 * _cross_entropy(mean, STUDENT.logits / 4)
    torch.testing.assert_close(KDLoss(temperature=4.0)(STUDENT, BOTH), expected)


def test_fnkd_normalises_each_by_its_own_norm() -> None:
    loss = FNKDLoss(tau=2.0, loss_weight=9.0)
    mean = sum(w * scale_by_feature_norm(*x, 2.0).softmax(1) for w, x in ((0.25, A), (0.75, B)))
    torch.testing.assert_close(loss(STUDENT, BOTH), 9 * _cross_entropy(mean, scale_by_feature_norm(*STUDENT, 2.0)))


def test_auto_tau_is_a_third_of_the_weighted_mean_norm() -> None:
    loss = FNKDLoss()
    loss.observe(BOTH)
    assert math.isclose(loss.tau, float(0.25 * A.feature_norm.mean() + 0.75 * B.feature_norm.mean()) / 3, rel_tol=1e-6)


@pytest.mark.parametrize('loss', [KDLoss(), FNKDLoss(tau=2.0), NormKDLoss(), DKDLoss()])
def test_equal_teachers_are_one(loss: SoftLoss) -> None:
    labels = torch.arange(6) % CLASSES
    twice = EnsemblePrediction.of([A, A], [0.3, 0.7])
    torch.testing.assert_close(loss(STUDENT, twice, labels), loss(STUDENT, A, labels))


@pytest.mark.parametrize('loss', [KDLoss(temperature=4.0), FNKDLoss(tau=2.0)])
def test_an_ensemble_of_ensembles_is_one_of_all_members(loss: SoftLoss) -> None:
    nested = EnsemblePrediction.of([A, EnsemblePrediction.of([B, STUDENT], [0.5, 0.5])], [0.2, 0.8])
    flat = EnsemblePrediction.of([A, B, STUDENT], [0.2, 0.4, 0.4])
    torch.testing.assert_close(loss(STUDENT, nested), loss(STUDENT, flat))


def test_each_has_its_own_normalisation_size_and_classes(tmp_path: Path) -> None:
    configs = [
        timm_teacher(tmp_path, mean=MEAN, std=STD),
        dict(
            type='TimmTeacher',
            model='test_efficientnet',
            checkpoint=str(timm_checkpoint(tmp_path, 'test_efficientnet', num_classes=7)),
            input_size=48,
            class_map=[6, 0, 1, 2],
        ),
    ]
    teacher = MODELS.build(dict(type='EnsembleTeacher', teachers=configs, weights=[1, 3]))
    teacher.match_classes(CLASSES, None)
    teacher.prepare(SOURCE)
    assert (teacher.num_classes, teacher.has_feature_norm, teacher.weights) == (CLASSES, True, [0.25, 0.75])
    prediction = teacher.predict(IMAGES)
    expected: Any = 0
    for weight, cfg in zip(teacher.weights, configs, strict=True):
        alone = TimmTeacher(**{key: value for key, value in cfg.items() if key != 'type'})
        alone.prepare(SOURCE)
        expected = expected + weight * alone.predict(IMAGES).logits.softmax(1)
    torch.testing.assert_close(prediction.logits.softmax(1), expected)


def test_teaches_through_the_runner(tmp_path: Path) -> None:
    """Two equal teachers train as one does; the log has their accuracy, norm and tau."""
    one = timm_teacher(tmp_path)
    runs = [
        train(
            distilled(resnet(), teacher, dict(type='FNKDLoss')),
            tmp_path / name,
            train_cfg=dict(by_epoch=True, max_epochs=1),
        )
        for name, teacher in (('one', one), ('two', dict(type='EnsembleTeacher', teachers=[one, one])))
    ]
    for key in ('loss', 'teacher_acc', 'teacher_norm', 'tau'):
        a, b = (torch.tensor(run.message_hub.get_scalar(f'train/{key}').data[0]) for run in runs)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_does_not_break_a_compiled_graph() -> None:
    def step(z: Tensor, v: Tensor, w: Tensor) -> Tensor:
        several = EnsemblePrediction.of([Prediction(v), Prediction(w)], [0.5, 0.5])
        return KDLoss()(Prediction(z), several) + several.logits.sum()

    inputs = [x.logits for x in (STUDENT, A, B)]
    torch.testing.assert_close(torch.compile(step, backend='eager', fullgraph=True)(*inputs), step(*inputs))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(teachers=[]), 'teachers is empty'),
        (dict(teachers=[{}, {}], weights=[1]), '2 teachers need as many weights, not 1'),
        (dict(teachers=[{}], weights=[0.0]), 'a weight must be a finite number > 0'),
        (dict(teachers=[torch.nn.Identity()]), 'Identity is not a teacher'),
    ],
)
def test_faults(options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=f'EnsembleTeacher: {message}'):
        EnsembleTeacher(**options)


def test_the_member_that_does_not_fit_is_named(tmp_path: Path) -> None:
    seven = dict(type='TimmTeacher', model='test_resnet', checkpoint=str(timm_checkpoint(tmp_path, num_classes=7)))
    teacher = MODELS.build(dict(type='EnsembleTeacher', teachers=[timm_teacher(tmp_path), seven]))
    with pytest.raises(SetupError, match=r'the student has 4 classes, the teacher TimmTeacher\(test_resnet\) has 7'):
        teacher.match_classes(CLASSES, None)
    two_heads = dict(type='TimmTeacher', model='crossvit_tiny_240', num_classes=CLASSES)
    two_heads['checkpoint'] = str(timm_checkpoint(tmp_path, 'crossvit_tiny_240'))
    model = distilled(resnet(), dict(type='EnsembleTeacher', teachers=[timm_teacher(tmp_path), two_heads]))
    model['head']['soft_loss'] = dict(type='FNKDLoss')
    with pytest.raises(SetupError, match=r'feature norms, but TimmTeacher\(crossvit_tiny_240\) has no single last'):
        build(model)


# wrong_teacher_weight


@pytest.mark.parametrize('weight', [0.0, 0.25, 1.0])
def test_wrong_teachers_count_less(weight: float) -> None:
    """The mean over images, each of a wrong teacher times the weight."""
    labels = A.logits.argmax(1)
    labels[:2] = (labels[:2] + 1) % CLASSES
    found = DistillHead(dict(type='KDLoss'), wrong_teacher_weight=weight)(STUDENT, A, labels)['loss_soft']
    each = [KDLoss()(*(Prediction(x.logits[n : n + 1]) for x in (STUDENT, A))) for n in range(6)]
    expected = (weight * sum(each[:2]) + sum(each[2:])) / 6
    torch.testing.assert_close(found, expected)


def test_of_several_teachers_the_mean_is_right_or_wrong() -> None:
    labels = BOTH.logits.argmax(1)
    head = DistillHead(dict(type='KDLoss'), wrong_teacher_weight=0.0)
    torch.testing.assert_close(head(STUDENT, BOTH, labels)['loss_soft'], KDLoss()(STUDENT, BOTH))
    assert head(STUDENT, BOTH, (labels + 1) % CLASSES)['loss_soft'] == 0


def test_wrong_teacher_weight_faults() -> None:
    with pytest.raises(SetupError, match=r'wrong_teacher_weight must be in \[0, 1\], but is 2'):
        DistillHead(dict(type='KDLoss'), wrong_teacher_weight=2)
    with pytest.raises(SetupError, match='DKDLoss is not a mean over images'):
        DistillHead(dict(type='DKDLoss'), wrong_teacher_weight=0)
    with pytest.raises(ValueError, match='no labels, which wrong_teacher_weight needs'):
        DistillHead(dict(type='KDLoss'), wrong_teacher_weight=0)(STUDENT, A)
