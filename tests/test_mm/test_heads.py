"""MMPretrain's heads without one last affine layer, by name: KD on what ``predict`` uses, or a refusal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from tests.helpers import (
    CLASSES,
    SIZE,
    build,
    config,
    cosine,
    distilled,
    preprocessor,
    raw_batch,
    resnet,
    timm_teacher,
    vit,
)

pytestmark = [
    pytest.mark.upstream,
    pytest.mark.filterwarnings('ignore:MMPretrain cannot train the distilled version DeiT'),
]
_ARCH = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)


def _with_head(kind: str, **options: Any) -> dict:
    return resnet(head=dict(type=kind, num_classes=CLASSES, in_channels=32, **options))


def _deit() -> dict:
    return vit(
        backbone=dict(type='DistilledVisionTransformer', arch=_ARCH, img_size=SIZE, patch_size=8),
        head=dict(type='DeiTClsHead', num_classes=CLASSES, in_channels=16),
    )


def _conformer() -> dict:
    arch = dict(embed_dims=32, channel_ratio=1, num_heads=2, depths=3)
    return dict(
        type='ImageClassifier',
        backbone=dict(type='Conformer', arch=arch, patch_size=16, base_channels=4),
        head=dict(type='ConformerHead', num_classes=CLASSES, in_channels=[16, 32]),
        data_preprocessor=preprocessor(),
    )


ONE_LAYER = {
    'EfficientFormerClsHead of one head': _with_head('EfficientFormerClsHead', distillation=False),
    'LeViTClsHead of one head': _with_head('LeViTClsHead', distillation=False),
}
WITHOUT_NORM = {
    'DeiTClsHead': _deit(),
    'ConformerHead': _conformer(),
    'ArcFaceClsHead': cosine(margins=0.5),
}
NOT_TRAINED = {
    'EfficientFormerClsHead': _with_head('EfficientFormerClsHead'),
    'LeViTClsHead': _with_head('LeViTClsHead'),
}
OTHER_TASKS = {
    'CSRAClsHead': _with_head('CSRAClsHead', num_heads=1, lam=0.1) | dict(neck=None),
    'MultiLabelLinearClsHead': _with_head('MultiLabelLinearClsHead'),
    'MultiTaskHead': resnet(
        head=dict(type='MultiTaskHead', task_heads=dict(a=dict(type='LinearClsHead', num_classes=4)), in_channels=32)
    ),
}


def _built(model: dict) -> Any:
    """In eval mode, with weights that tell its classes apart (some heads start at zero)."""
    built = build(model).eval()
    with torch.no_grad():
        for module in built.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(module.in_features))
    return built


def _predicted(model: Any, images: Tensor) -> Tensor:
    return torch.stack([sample.pred_score for sample in model.predict(images)])


@pytest.mark.parametrize('name', [*ONE_LAYER, *WITHOUT_NORM])
def test_students_learn_by_what_they_predict_with(name: str, tmp_path: Path) -> None:
    """At T = 1 the soft loss is the cross-entropy of the scores of the student's own ``predict``."""
    soft = dict(type='KDLoss', temperature=1.0)
    model = _built(distilled({**ONE_LAYER, **WITHOUT_NORM}[name], timm_teacher(tmp_path), soft))
    data = model.data_preprocessor(raw_batch(), training=True)
    found = model(**data, mode='loss')
    target = model.distillation.predict(data['inputs'], data['data_samples']).logits.softmax(1)
    scores = _predicted(model, data['inputs'])
    assert scores.std() > 0.01
    torch.testing.assert_close(found['loss_soft'], -(target * scores.log()).sum(1).mean(), rtol=1e-4, atol=1e-5)
    found['loss_soft'].backward()
    trained = [p for p in model.head.parameters() if p.grad is not None and p.grad.any()]
    assert len(trained) == len(list(model.head.parameters())), 'all heads learn'


@pytest.mark.parametrize('name', [*ONE_LAYER, *WITHOUT_NORM])
def test_fnkd_applies_or_says_so(name: str, tmp_path: Path) -> None:
    fnkd = dict(type='FNKDLoss', tau=1.0)
    if name in ONE_LAYER:
        model = build(distilled(ONE_LAYER[name], timm_teacher(tmp_path), fnkd))
        model(**model.data_preprocessor(raw_batch(), training=True), mode='loss')
        assert model.distillation.step.student.feature_norm is not None
        return
    with pytest.raises(SetupError, match=rf'\({name}\) come from no single last affine layer .*use KDLoss'):
        build(distilled(WITHOUT_NORM[name], timm_teacher(tmp_path), fnkd))


@pytest.mark.parametrize('name', NOT_TRAINED)
def test_models_that_mmpretrain_does_not_train_are_refused_as_students(name: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=rf'the student has a {name} of two heads.* model\.head\.distillation=False'):
        build(distilled(NOT_TRAINED[name], timm_teacher(tmp_path)))


@pytest.mark.parametrize('name', [*ONE_LAYER, *WITHOUT_NORM, *NOT_TRAINED])
def test_teachers_say_what_they_predict(name: str, tmp_path: Path) -> None:
    model = {**ONE_LAYER, **WITHOUT_NORM, **NOT_TRAINED}[name]
    plain = _built(model)
    torch.save(plain.state_dict(), tmp_path / 'w.pth')
    teacher = MMPretrainTeacher(config(model, tmp_path), tmp_path / 'w.pth')
    assert (teacher.num_classes, teacher.has_feature_norm) == (CLASSES, name in ONE_LAYER)
    teacher.prepare(teacher.pixels)
    images = plain.data_preprocessor(raw_batch())['inputs']
    torch.testing.assert_close(teacher.predict(images).logits.softmax(1), _predicted(plain, images))


@pytest.mark.parametrize('name', OTHER_TASKS)
def test_heads_of_other_tasks_are_refused_on_both_sides(name: str, tmp_path: Path) -> None:
    task = 'a multi-task model' if name == 'MultiTaskHead' else 'a multi-label classifier'
    with pytest.raises(SetupError, match=rf'the student is {task} \({name}\); soft targets are distributions over'):
        build(distilled(OTHER_TASKS[name], timm_teacher(tmp_path)))
    torch.save(build(OTHER_TASKS[name]).state_dict(), tmp_path / 'w.pth')
    with pytest.raises(SetupError, match=rf'the teacher is {task} \({name}\); soft targets'):
        MMPretrainTeacher(config(OTHER_TASKS[name], tmp_path), tmp_path / 'w.pth')
