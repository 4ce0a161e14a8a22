from pathlib import Path

import numpy as np
import pytest
import torch

from fnkd_plugin.analysis.subject import build_subject
from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers import TimmTeacher
from fnkd_plugin.weights import read_state_dict
from tests.helpers import CLASSES, MEAN, STD, config, distilled, resnet, timm_checkpoint, timm_student, timm_teacher
from tests.test_analysis.subjects import checkpoint, evaluation_config, subject

pytestmark = pytest.mark.upstream


def test_batches_come_in_the_data_sets_order_with_their_labels(tmp_path: Path) -> None:
    found = subject(tmp_path, count=20)
    batches = list(found.batches())
    assert [len(b.images) for b in batches] == [8, 8, 4]
    assert [i for b in batches for i in b.indices] == list(range(20))
    some = next(iter(found.batches([5, 2])))
    assert list(some.indices) == [5, 2]
    assert torch.equal(some.images, torch.cat([b.images for b in batches])[[5, 2]])


def test_training_images_go_through_the_evaluations_pipeline(tmp_path: Path) -> None:
    cfg = evaluation_config(tmp_path)
    cfg.train_dataloader.dataset.pipeline = [dict(type='RandomResizedCrop', scale=16), dict(type='PackInputs')]
    found = build_subject(cfg, checkpoint(tmp_path, resnet()), 'train')
    assert next(found.batches()).images.shape[1:] == (3, 32, 32)
    assert cfg.train_dataloader.dataset.pipeline[0].type == 'RandomResizedCrop'


def test_labels_that_a_data_set_flips_have_a_clean_side(tmp_path: Path) -> None:
    cfg = evaluation_config(tmp_path)
    cfg.train_dataloader.dataset.update(type='FlippedLabels', of='RandomImages', rate=0.25, count=40)
    found = build_subject(cfg, checkpoint(tmp_path, resnet()), 'train')
    assert (found.clean == np.arange(40) % CLASSES).all()
    assert (found.labels != found.clean).sum() == 10
    assert sum(len(b.indices) for b in found.batches()) == 40


def test_a_distilled_config_gives_its_student_and_a_teacher_that_is_there(tmp_path: Path) -> None:
    cfg = evaluation_config(tmp_path, distilled(timm_student(), timm_teacher(tmp_path, mean=MEAN, std=STD)))
    student = timm_checkpoint(tmp_path, seed=3)
    found = build_subject(cfg, student, 'val')
    assert found.teacher is not None
    batch = next(found.batches())
    assert not torch.equal(batch.model.logits, batch.teacher.logits)
    same = build_subject(cfg, student, 'val', teacher_checkpoint=str(student))
    batch = next(same.batches())
    assert torch.allclose(batch.model.logits, batch.teacher.logits, atol=1e-5)
    named = build_subject(cfg, student, 'val', teacher='timm:test_resnet', teacher_checkpoint=str(student)).teacher
    assert isinstance(named, TimmTeacher)
    for key, tensor in read_state_dict(student).items():
        assert torch.equal(named.model.state_dict()[key], tensor)
    cfg.model.teacher.checkpoint = 'gone.pth'
    assert build_subject(cfg, student, 'val').teacher is None
    with pytest.raises(SetupError, match=r'gone\.pth does not exist'):
        build_subject(cfg, student, 'val', teacher_checkpoint='gone.pth')


@pytest.mark.parametrize(
    ('from_files', 'to_rgb', 'order'), [(True, False, 'bgr'), (False, False, 'rgb'), (True, True, 'rgb')]
)
def test_the_channel_order_follows_the_stated_rule(tmp_path: Path, from_files: bool, to_rgb: bool, order: str) -> None:
    model = resnet()
    model['data_preprocessor'] = {**model['data_preprocessor'], 'to_rgb': to_rgb}
    cfg = evaluation_config(tmp_path, model)
    if from_files:
        cfg.val_dataloader.dataset.pipeline.insert(0, dict(type='LoadImageFromFile'))
    assert build_subject(cfg, checkpoint(tmp_path, model), 'val').pixels.channel_order == order


def test_a_teacher_of_the_same_unknown_channel_order_needs_no_statement(tmp_path: Path) -> None:
    """As in training; ``to_rgb=False`` with images in memory (CIFAR) does not define the order."""
    model = resnet()
    model['data_preprocessor'] = dict(mean=MEAN, std=STD, to_rgb=False)
    path = tmp_path / 'teacher.py'
    evaluation_config(tmp_path, model).dump(path)
    weights = checkpoint(tmp_path, model)
    options = dict(teacher=str(path), teacher_checkpoint=str(weights))
    found = build_subject(evaluation_config(tmp_path, model), weights, 'val', **options)
    batch = next(found.batches())
    torch.testing.assert_close(batch.teacher.logits, batch.model.logits)


def test_invalid_options_raise_one_sentence(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path, resnet())
    cfg = evaluation_config(tmp_path)
    with pytest.raises(SetupError, match='no test_dataloader; choose another --split'):
        build_subject(cfg, weights, 'test')
    with pytest.raises(SetupError, match='the config names no teacher; give --teacher '):
        build_subject(cfg, weights, 'val', teacher_checkpoint=str(weights))
    without = config(resnet(), tmp_path)
    with pytest.raises(SetupError, match='no val_dataloader or test_dataloader whose pipeline'):
        build_subject(without, weights, 'train')
    path = tmp_path / 'five.py'
    five = resnet(num_classes=5)
    config(five, tmp_path).dump(path)
    with pytest.raises(SetupError, match=r'the student has 4 classes, the teacher .* has 5'):
        build_subject(cfg, weights, 'val', str(path), str(checkpoint(tmp_path, five, seed=5)))


def test_samples_that_a_pipeline_relabels_are_refused(tmp_path: Path) -> None:
    found = subject(tmp_path, count=8)
    found.labels[3] += 1
    with pytest.raises(SetupError, match='the pipeline changes labels or leaves out images'):
        next(found.batches())
