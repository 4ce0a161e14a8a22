"""Teachers of other, more or reordered classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mmpretrain.datasets import CUB, ImageNet
from timm.data import ImageNetInfo
from timm.models import PretrainedCfg

from fnkd_plugin import Prediction
from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import scale_by_feature_norm
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.mm.training import build_runner
from fnkd_plugin.teachers import Classes, ClassMap, TimmTeacher
from fnkd_plugin.teachers.class_names import timm_classes
from tests.helpers import (
    CLASSES,
    SIZE,
    build,
    config,
    distilled,
    resnet,
    timm_checkpoint,
    timm_student,
    timm_teacher,
    train,
)

pytestmark = pytest.mark.upstream

IMAGES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
LETTERS = Classes(['a', 'b', 'c', 'd', 'e'])


def _index(mapping: Any, classes: Classes | None = LETTERS, student: Classes | None = None) -> list[int]:
    """The teacher's class of each of the student's, seen in what is restricted."""
    found = ClassMap('Teacher', 5, classes, mapping)
    found.match(found.count if student is None else len(student.names), student)
    return found.restrict(Prediction(torch.arange(5.0)[None])).logits[0].int().tolist()


def test_forms_of_maps(tmp_path: Path) -> None:
    assert _index([4, 0, 2]) == [4, 0, 2]
    assert _index(['e', 'A', '003.c']) == [4, 0, 2], 'as names are compared'
    (tmp_path / 'indices.txt').write_text('4\n0\n2\n')
    (tmp_path / 'names.txt').write_text('e\na\nc\n')
    assert _index(str(tmp_path / 'indices.txt')) == _index(tmp_path / 'names.txt') == [4, 0, 2]
    assert _index('by-name', student=Classes(['e', 'a', 'c'])) == [4, 0, 2]
    assert _index(np.array([4, 0, 2])) == [4, 0, 2]
    assert _index(None) == [0, 1, 2, 3, 4]


def test_digits_that_are_not_numbers(tmp_path: Path) -> None:
    """For Python '²' is a digit, but not a number."""
    (tmp_path / 'map.txt').write_text('²\n1\n', encoding='utf-8')
    with pytest.raises(SetupError, match="1 of 2 classes are not among the teacher's 5: '²'"):
        _index(tmp_path / 'map.txt', Classes(['1', 'b', 'c', 'd', 'e']))


def test_files_are_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / 'names.txt').write_bytes('e\nmésange\n'.encode())
    classes = Classes(['a', 'mésange', 'c', 'd', 'e'])
    assert _index(tmp_path / 'names.txt', classes) == [4, 1]
    (tmp_path / 'latin.txt').write_bytes('mésange\n'.encode('latin-1'))
    with pytest.raises(SetupError, match=r'Teacher: .*latin\.txt is not in UTF-8'):
        _index(tmp_path / 'latin.txt', classes)


def test_matching_by_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr('fnkd_plugin.teachers.class_map._logger.info', messages.append)
    assert _index('by-name', student=Classes(['e', 'b', 'c'])) == [4, 1, 2]
    assert messages == [
        "Teacher: class_map='by-name' found all 3 student classes among the teacher's 5; 1 have a different index."
    ]


@pytest.mark.parametrize(
    ('teacher', 'student', 'expected'),
    [
        (['a', 'b', 'A', 'B'], ['A', 'B', 'a', 'b'], [2, 3, 0, 1]),  # letter case
        (['1.x', 'y', '2.x'], ['2.x', 'y', '1.x'], [2, 1, 0]),  # the number of CUB's folders
        (['a_b', 'y', 'a b'], ['a b', 'y', 'a_b'], [2, 1, 0]),  # underscores
        (['crane, bird', 'crane, machine'], ['crane, machine', 'crane, bird'], [1, 0]),  # synonyms
    ],
)
def test_names_of_one_side_that_resemble_are_compared_exactly(
    teacher: list[str], student: list[str], expected: list[int]
) -> None:
    """Both orders would be the same if compared as loosely as names of two sides are."""
    same, other = Classes(teacher), Classes(student)
    with pytest.raises(SetupError, match=rf'in their order \(0: {student[0]!r}, not {teacher[0]!r}'):
        ClassMap('Teacher', len(teacher), same).match(len(student), other)
    ClassMap('Teacher', len(teacher), same).match(len(teacher), same)
    found = ClassMap('Teacher', len(teacher), same, 'by-name')
    found.match(len(student), other)
    assert found.restrict(Prediction(torch.arange(len(teacher))[None])).logits[0].tolist() == expected


def test_names_that_only_one_side_tells_apart_are_refused() -> None:
    for teacher, student in ((['a', 'b'], ['a', 'A']), (['a', 'A'], ['a', 'b'])):
        with pytest.raises(SetupError, match='1: '):
            ClassMap('Teacher', 2, Classes(teacher)).match(2, Classes(student))
    with pytest.raises(SetupError, match="2 of 2 classes match the same of the teacher's 2: 'a', 'A'"):
        ClassMap('Teacher', 2, Classes(['a', 'b']), 'by-name').match(2, Classes(['a', 'A']))


def test_names_of_two_sides_may_be_spelled_otherwise() -> None:
    student = Classes(['001.Black_footed_Albatross', 'owl', 'maillot, tank suit'])
    ClassMap('Teacher', 3, Classes(['black footed albatross', 'OWL, bird', 'tank suit'])).match(3, student)


def test_imagenets_ids_tell_apart_what_names_do_not() -> None:
    """Of the two classes called 'crane' and of 'maillot' and 'maillot, tank suit' each is compared with itself."""
    imagenet = timm_classes(timm.get_pretrained_cfg('resnet18'))
    assert imagenet.ids is not None and imagenet.names[134] == imagenet.names[517]
    order = list(range(1000))
    order[134], order[517] = 517, 134
    swapped = Classes([imagenet.names[k] for k in order], [imagenet.ids[k] for k in order])
    with pytest.raises(SetupError, match="134: 'crane', not 'crane', 517"):
        ClassMap('Teacher', 1000, imagenet).match(1000, swapped)
    order[134], order[517], order[638], order[639] = 134, 517, 639, 638
    assert Classes.of([imagenet.names[k] for k in order], 'Me').ids is None, 'another order than that of ImageNet'


def test_restriction_is_renormalised() -> None:
    """Against a hand computation: probabilities 1, 2, 3, 4 of 10, of which the second and fourth are left."""
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    restricted = ClassMap('Teacher', 4, None, [3, 1]).restrict(Prediction(logits))
    torch.testing.assert_close(restricted.logits.softmax(1), torch.tensor([[4 / 6, 2 / 6]]))


def test_a_mapped_models_prediction_rescales_exactly(tmp_path: Path) -> None:
    """(z - b) s + b on the subset equals the head, cut down to the subset, on the rescaled feature."""
    path = timm_checkpoint(tmp_path, num_classes=7)
    teacher = TimmTeacher('test_resnet', path, class_map=[5, 0, 6, 2])
    teacher.match_classes(CLASSES, None)
    teacher.prepare(teacher.pixels)
    assert teacher.num_classes == CLASSES
    prediction = teacher.predict(IMAGES)
    plain = timm.create_model('test_resnet', num_classes=7).eval()
    plain.load_state_dict(torch.load(path))
    with torch.no_grad():
        feature = plain.forward_head(plain.forward_features(IMAGES), pre_logits=True)
        head = plain.get_classifier()
        weight, bias = head.weight[[5, 0, 6, 2]], head.bias[[5, 0, 6, 2]]
        unit = feature / feature.norm(dim=1, keepdim=True)
    torch.testing.assert_close(prediction.logits, feature @ weight.T + bias, rtol=1e-4, atol=1e-5)
    rescaled = scale_by_feature_norm(*prediction, 2.0, 'normalize')
    torch.testing.assert_close(rescaled, 2 * unit @ weight.T + bias, rtol=1e-4, atol=1e-4)


def _imagenet_map(count: int, mapping: Any) -> list[str]:
    """The WordNet IDs that a timm model of so many ImageNet classes gives a student of ImageNet-1k."""
    classes = timm_classes(PretrainedCfg(num_classes=count))
    assert classes is not None and classes.ids is not None and len(classes.names) == count
    found = ClassMap('Teacher', count, classes, mapping)
    found.match(1000, Classes.of(ImageNet, 'ImageNet'))
    index = found.restrict(Prediction(torch.arange(count)[None])).logits[0]
    return [classes.ids[int(k)] for k in index]


def test_imagenet_1k_inside_imagenet_22k_by_name() -> None:
    """By WordNet IDs, since two of the 1000 classes are called 'crane'."""
    assert _imagenet_map(21842, 'by-name') == ImageNetInfo('imagenet-1k').label_names()


def test_imagenet_1k_inside_imagenet_21k_needs_a_stand_in() -> None:
    """Of the 1000 one is not in ImageNet-21k; it is named, and a list of IDs can hold another."""
    with pytest.raises(SetupError, match="1 of 1000 classes are not among the teacher's 21843: 'teddy, teddy bear'"):
        _imagenet_map(21843, 'by-name')
    ids = ImageNetInfo('imagenet-1k').label_names()
    ids[ids.index('n04399382')] = 'n00004475'  # organism, being
    assert _imagenet_map(21843, ids) == ids


def test_imagenets_own_order_is_recognised() -> None:
    """MMPretrain and timm spell two classes otherwise."""
    student = Classes.of(ImageNet, 'ImageNet')
    teacher = timm_classes(timm.get_pretrained_cfg('resnet18'))
    ClassMap('Teacher', 1000, teacher).match(1000, student)
    swapped = Classes([*student.names[1::-1], *student.names[2:]])
    with pytest.raises(SetupError, match=r"0: 'goldfish, .*', not 'tench, .*', 1: 'tench, "):
        ClassMap('Teacher', 1000, teacher).match(1000, swapped)


@pytest.mark.parametrize(
    ('mapping', 'classes', 'student', 'message'),
    [
        ([0, 5], LETTERS, None, "1 of 2 classes are not among the teacher's 5: 5"),
        ([0, -1], LETTERS, None, 'not among'),
        ([0, 0, 1], LETTERS, None, "2 of 3 classes match the same of the teacher's 5: 0, 0"),
        (['a', 'f'], LETTERS, None, "not among the teacher's 5: 'f'"),
        (['a', 'b'], Classes(['a', 'b', 'b', 'c', 'd']), None, "match several of the teacher's 5: 'b'"),
        (['a'], None, None, "needs the names of the teacher's classes"),
        ([], LETTERS, None, 'class_map is empty'),
        ([0, 'a'], LETTERS, None, 'only indices or only names'),
        ([True, False], LETTERS, None, 'only indices or only names'),
        ([0.0, 1.0], LETTERS, None, 'only indices or only names'),
        (3, LETTERS, None, 'only indices or only names, but is 3'),
        (dict(a='b', b='a'), LETTERS, None, 'only indices or only names'),
        ([1], LETTERS, None, 'teacher Teacher has 1 class'),
        ('nowhere.txt', LETTERS, None, 'no file nowhere.txt'),
        ('by-name', LETTERS, None, r'needs the names of the student.*Distiller .*classes='),
        ('by-name', LETTERS, Classes(['a', 'z']), "1 of 2 classes are not among the teacher's 5: 'z'"),
        ([0, 1], LETTERS, Classes(['a', 'b', 'c']), 'the student has 3 classes, the teacher Teacher has 2'),
        (None, LETTERS, Classes(['a', 'x', 'c']), "3 classes, .* has 5; .*first that differ: 1: 'x', not 'b'"),
        (
            None,
            LETTERS,
            Classes(['a', 'c', 'b', 'd', 'e']),
            "not the student's, in their order .1: 'c', not 'b', 2: 'b'",
        ),
    ],
)
def test_faults(mapping: Any, classes: Any, student: Any, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        _index(mapping, classes, student)


def test_a_long_name_is_cut_in_the_message() -> None:
    with pytest.raises(SetupError, match='not among') as error:
        _index(['x' * 100_000], LETTERS)
    assert len(str(error.value)) < 1000


def test_stated_names_must_be_as_many_as_the_classes(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r'TimmTeacher\(test_resnet\): it has 4 classes, but classes has 3 names'):
        TimmTeacher('test_resnet', timm_checkpoint(tmp_path), classes=['a', 'b', 'c'])


def _saved(folder: Path, names: list[str]) -> str:
    state = torch.load(timm_checkpoint(folder, num_classes=len(names)))
    path = folder / 'named.pth'
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=names))), path)
    return str(path)


def _named_teacher(folder: Path, names: list[str], **options: Any) -> dict:
    return dict(type='TimmTeacher', model='test_resnet', checkpoint=_saved(folder, names), **options)


def test_names_come_from_the_checkpoint_by_name_teaches_through_the_runner(tmp_path: Path) -> None:
    """Learning from a teacher of permuted and further classes is learning from that teacher cut down by hand."""
    names = ['c3', 'x', 'c0', 'c1', 'c2']
    model = distilled(timm_student(), _named_teacher(tmp_path, names, class_map='by-name'))
    model['classes'] = [f'c{i}' for i in range(CLASSES)]
    runner = train(model, tmp_path / 'mapped', train_cfg=dict(by_epoch=True, max_epochs=1))
    state = torch.load(timm_checkpoint(tmp_path, num_classes=5))
    for key in ('fc.weight', 'fc.bias'):
        state[key] = state[key][[2, 3, 4, 0]]
    torch.save(state, tmp_path / 'cut.pth')
    cut = distilled(timm_student(), dict(type='TimmTeacher', model='test_resnet', checkpoint=str(tmp_path / 'cut.pth')))
    again = train(cut, tmp_path / 'cut', train_cfg=dict(by_epoch=True, max_epochs=1))
    for a, b in zip(runner.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('known', [True, False])
def test_another_order_raises_before_the_first_step(known: bool, tmp_path: Path) -> None:
    """When the model is built if the config knows the names, else when the data set does."""
    cfg = config(distilled(resnet(), _named_teacher(tmp_path, ['c0', 'c2', 'c1', 'c3'])), tmp_path)
    if known:
        cfg.train_dataloader.dataset.metainfo = dict(classes=[f'c{i}' for i in range(CLASSES)])
        with pytest.raises(SetupError, match=r"order .1: 'c1', not 'c2', 2: 'c2', not 'c1'"):
            build_runner(cfg)
        return
    runner = build_runner(cfg)
    with pytest.raises(SetupError, match=r"order .1: 'c1', not 'c2', 2: 'c2', not 'c1'"):
        runner.train()
    assert runner.iter == 0


def test_what_the_user_calls_the_students_classes_counts(tmp_path: Path) -> None:
    """The data may call them otherwise, by the names of folders."""
    model = distilled(resnet(), _named_teacher(tmp_path, ['wren', 'owl', 'x', 'tit', 'gull'], class_map='by-name'))
    model['classes'] = ['gull', 'owl', 'tit', 'wren']
    cfg = config(model, tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1))
    runner = build_runner(cfg)
    runner.train()
    assert runner.iter == 4


def test_the_datas_own_names_in_another_order_are_refused(tmp_path: Path) -> None:
    """Labels are in the data's order, so that every target would be another class's."""
    model = distilled(resnet(), _named_teacher(tmp_path, ['c0', 'c1', 'c2', 'c3'], class_map='by-name'))
    model['classes'] = ['c0', 'c2', 'c1', 'c3']
    runner = build_runner(config(model, tmp_path))
    with pytest.raises(SetupError, match=r"in another order \(1: 'c2', not 'c1'"):
        runner.train()


@pytest.mark.parametrize('form', ['list', 'file'])
def test_the_argument_of_a_data_set_names_the_classes(form: str, tmp_path: Path) -> None:
    """MMPretrain's data sets take 'classes', which goes before their METAINFO."""
    names = list(CUB.METAINFO['classes'])[::-1]
    (tmp_path / 'classes.txt').write_text('\n'.join(names))
    stated = names if form == 'list' else str(tmp_path / 'classes.txt')
    cfg = config(resnet(num_classes=200), tmp_path)
    cfg.train_dataloader.dataset = dict(type='CUB', classes=stated)
    torch.save(build(resnet(num_classes=200)).state_dict(), tmp_path / 'w.pth')
    assert MMPretrainTeacher(cfg, tmp_path / 'w.pth').class_map.own.names == names


@pytest.mark.parametrize('known', [True, False])
def test_assumed_imagenet_classes_are_logged(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr('fnkd_plugin.teachers.timm_teacher._logger.info', messages.append)
    path = _saved(tmp_path, [f'c{k}' for k in range(1000)]) if known else timm_checkpoint(tmp_path, num_classes=1000)
    teacher = TimmTeacher('test_resnet', path)
    assert teacher.class_map.own.names[0] == ('c0' if known else 'tench, Tinca tinca')
    assert ['of ImageNet' in text for text in messages] == [True] * (not known)


def test_names_come_from_the_teachers_config(tmp_path: Path) -> None:
    cfg = config(resnet(num_classes=200), tmp_path)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(type='CUB'))
    torch.save(build(resnet(num_classes=200)).state_dict(), tmp_path / 'w.pth')
    names = list(CUB.METAINFO['classes'])
    teacher = MMPretrainTeacher(cfg, tmp_path / 'w.pth', class_map=names[3::-1])
    teacher.prepare(teacher.pixels)
    whole = MMPretrainTeacher(cfg, tmp_path / 'w.pth')
    whole.prepare(whole.pixels)
    assert torch.equal(teacher.predict(IMAGES).logits, whole.predict(IMAGES).logits[:, [3, 2, 1, 0]])


def test_distillers_classes_must_be_the_students(tmp_path: Path) -> None:
    model = distilled(timm_student(), timm_teacher(tmp_path))
    model['classes'] = ['a', 'b']
    with pytest.raises(SetupError, match='the student has 4 classes, but classes names 2'):
        build(model)
