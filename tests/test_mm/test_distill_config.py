"""A teacher or smoothed labels mixed into a plain config: the same from Python, a file and the shell."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models import ClsDataPreprocessor, heads
from mmpretrain.registry import MODELS

from fnkd_plugin import Distiller, DistillHead, distill, presets
from fnkd_plugin.cli.train import merge_arguments, parse_args, read_config
from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses.alsr_loss import label_tables
from fnkd_plugin.mm.config import is_distilled, load_config
from fnkd_plugin.mm.distill_config import METHODS, SMOOTHINGS, add_run_hooks, smooth_labels, teacher_config
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.teachers import EnsembleTeacher, TimmTeacher
from tests.helpers import (
    CLASSES,
    assert_same_weights,
    config,
    distilled,
    preprocessor,
    resnet,
    timm_checkpoint,
    timm_student,
    timm_teacher,
    train,
)
from tests.test_tools.configs import PURE_PYTHON, write_configs

pytestmark = pytest.mark.upstream
ROOT = Path(__file__).resolve().parents[2]
TEACHER = dict(type='TimmTeacher', model='resnet50', checkpoint='t.pth')


def _plain(student: dict | None = None, **options: Any) -> Config:
    return config(student or resnet(), **{'work_dir': Path('w'), **options})


def _mixed_by_shell(*argv: object) -> Config:
    return read_config(parse_args([str(arg) for arg in argv]))


def _entries(cfg: Config) -> dict:
    """The content, for both styles: types by their bare names, without the presets that it inherited from."""

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            named = {key: bare(value) for key, value in node.items() if key != '_scope_'}
            return {**named, 'type': named['type'].split('.')[-1]} if 'type' in named else named
        return type(node)(map(bare, node)) if isinstance(node, (list, tuple)) else node

    return bare({key: value for key, value in cfg.to_dict().items() if key not in vars(presets)})


def _with_hooks(cfg: Config) -> Config:
    """As ``tools/train.py`` runs a distilled file."""
    add_run_hooks(cfg)
    return cfg


FILES = {
    'plain.py': """
_base_ = ['plain.py', __import__('fnkd_plugin').presets.__file__]
custom_imports = dict(imports=['fnkd_plugin', 'tests.test_tools.images'], allow_failed_imports=False)
model = dict(
    _delete_=True, type='Distiller', student={{_base_.model}},
    teacher=dict(type='TimmTeacher', model='resnet50', checkpoint='t.pth'), head={{_base_.kd}})
""",
    'pure.py': """
from mmengine.config import read_base
from fnkd_plugin import Distiller
from fnkd_plugin.teachers import TimmTeacher
with read_base():
    from .pure import *
    from fnkd_plugin.presets import kd
custom_imports = dict(imports=['fnkd_plugin'], allow_failed_imports=False)
model = dict(
    type=Distiller, student=model, teacher=dict(type=TimmTeacher, model='resnet50', checkpoint='t.pth'), head=kd)
""",
}


@pytest.fixture(params=FILES)
def plain_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A plain config of either style."""
    write_configs(tmp_path, Path('t.pth'))
    (tmp_path / 'pure.py').write_text(PURE_PYTHON)
    return tmp_path / request.param


def test_file_python_and_shell_give_the_same_config(plain_file: Path) -> None:
    file = plain_file.with_name('mixed.py')
    file.write_text(FILES[plain_file.name])
    by_file = _entries(_with_hooks(Config.fromfile(file)))
    assert by_file['model']['type'] == 'Distiller'
    plain = Config.fromfile(plain_file)
    assert _entries(distill(plain, teacher=TEACHER, method='kd')) == by_file
    flags = ['--teacher', 'timm:resnet50', '--teacher-checkpoint', 't.pth', '--distill', 'kd']
    assert _entries(_mixed_by_shell(plain_file, *flags)) == by_file
    assert by_file['model']['student'] == _entries(plain)['model']


SEVERAL = dict(
    type='EnsembleTeacher',
    teachers=[
        TEACHER,
        dict(type='HuggingFaceTeacher', path='folder'),
        dict(type='MMPretrainTeacher', config='zoo_name'),
    ],
)
LSR_FILES = {
    'plain.py': (
        """
_base_ = ['plain.py', __import__('fnkd_plugin').presets.__file__]
custom_imports = dict(imports=['fnkd_plugin', 'tests.test_tools.images'], allow_failed_imports=False)
model = dict(head=dict(loss={{_base_.lsr}}))
"""
    ),
    'pure.py': (
        """
from mmengine.config import read_base
with read_base():
    from .pure import *
    from fnkd_plugin.presets import lsr
custom_imports = dict(imports=['fnkd_plugin'], allow_failed_imports=False)
model.head.loss = lsr
"""
    ),
}


def test_smoothed_labels_and_several_teachers_by_file_python_and_shell(plain_file: Path) -> None:
    smoothed = plain_file.with_name('smoothed.py')
    smoothed.write_text(LSR_FILES[plain_file.name])
    by_file = _entries(Config.fromfile(smoothed))
    assert by_file['model']['head']['loss'] == SMOOTHINGS['lsr']
    plain = Config.fromfile(plain_file)
    assert _entries(smooth_labels(plain, 'lsr')) == by_file
    assert _entries(_mixed_by_shell(plain_file, '--label-smoothing', 'lsr')) == by_file

    file = plain_file.with_name('mixed.py')
    presets_too = "'plain.py', __import__('fnkd_plugin').presets.__file__"  # which smoothed.py has
    text = FILES[plain_file.name].replace(presets_too, "'smoothed.py'").replace('.pure', '.smoothed')
    start = text.index('teacher=dict(')
    end = text.index("checkpoint='t.pth')") + len("checkpoint='t.pth')")
    file.write_text(f'{text[:start]}teacher={SEVERAL}{text[end:]}')
    by_file = _entries(_with_hooks(Config.fromfile(file)))
    assert by_file['model']['teacher'] == SEVERAL
    names = ['timm:resnet50', 'hf:folder', 'zoo_name']
    teachers = [teacher_config(name, 't.pth' if name == names[0] else None) for name in names]
    assert _entries(distill(smooth_labels(plain, 'lsr'), teachers, 'kd')) == by_file
    flags = ['--teacher', names[0], '--teacher-checkpoint', 't.pth', '--teacher', names[1], '--teacher', names[2]]
    assert _entries(_mixed_by_shell(plain_file, '--label-smoothing', 'lsr', *flags, '--distill', 'kd')) == by_file


def test_a_shipped_config_by_file_python_and_shell(tmp_path: Path) -> None:
    name = 'mmpretrain::resnet/resnet50_8xb8_cub.py'
    file = tmp_path / 'mixed.py'
    file.write_text(FILES['plain.py'].replace("'plain.py'", repr(name)).replace(", 'tests.test_tools.images'", ''))
    flags = ['--teacher', 'timm:resnet50', '--teacher-checkpoint', 't.pth', '--distill', 'kd']
    by_file = _entries(_with_hooks(Config.fromfile(file)))
    assert by_file['model']['student']['head']['num_classes'] == 200
    assert _entries(_mixed_by_shell(name, *flags)) == by_file
    assert _entries(distill(load_config(name), TEACHER, 'kd')) == by_file


def test_the_argument_is_left_alone(plain_file: Path) -> None:
    plain, teacher = Config.fromfile(plain_file), copy.deepcopy(TEACHER)
    before = plain.dump()
    mixed = smooth_labels(distill(plain, teacher=teacher, tau=2.0), 'lsr', eps=0.2)
    mixed.model.student.head.num_classes = mixed.model.teacher.checkpoint = 7
    mixed.custom_hooks.append(1)
    assert plain.dump() == before and teacher == TEACHER
    assert METHODS['fnkd'] == dict(type='DistillHead', soft_loss=dict(type='FNKDLoss'))
    assert SMOOTHINGS['lsr'] == dict(type='LSRLoss', eps=0.1)


def test_a_mixed_config_is_dumped_as_it_is_read(plain_file: Path) -> None:
    flags = ['--teacher', 'timm:resnet50', '--cfg-options', 'data_root=elsewhere', 'model.backbone.depth=34']
    plain_file.write_text(plain_file.read_text() + "\ndata_root = 'data'\nfolder = data_root + '/images'\n")
    mixed = _mixed_by_shell(plain_file, '--label-smoothing', 'lsr', *flags)
    dumped = plain_file.with_name('dumped.py')
    mixed.dump(dumped)
    assert Config.fromfile(dumped).to_dict() == mixed.to_dict()
    assert mixed.folder == 'elsewhere/images' and mixed.model.student.backbone.depth == 34
    assert mixed.model.student.head.loss == dict(type='LSRLoss', eps=0.1)


def test_the_pair_of_a_distilled_config_by_another_method(tmp_path: Path) -> None:
    fnkd = distill(_plain(), TEACHER, tau=2.0)
    kd = distill(fnkd, method='kd', temperature=2.0)
    assert kd.model == distill(_plain(), TEACHER, 'kd', temperature=2.0).model
    assert fnkd.model.head.soft_loss == dict(type='FNKDLoss', tau=2.0), 'a copy'
    plain, file = write_configs(tmp_path, Path('t.pth'))
    flags = ['--distill', 'kd', '--cfg-options', 'model.head.soft_loss.temperature=2', 'model.teacher.checkpoint=x']
    by_shell = _mixed_by_shell(file, *flags).model
    assert by_shell.head.soft_loss.temperature == 2 and by_shell.teacher.checkpoint == 'x'
    with pytest.raises(SetupError, match='give --teacher'):
        _mixed_by_shell(plain, '--distill', 'kd')


def test_a_rule_from_the_shell_is_applied_to_the_training_sets_classes(tmp_path: Path) -> None:
    """A subset of the birds, as folders."""
    for name in ('001.Herring_Gull', '002.Ivory_Gull', '003.Mallard'):
        (tmp_path / 'birds' / name).mkdir(parents=True)
    file = tmp_path / 'config.py'
    file.write_text(
        "model = dict(type='TimmStudent', model='test_resnet', num_classes=3)\n"
        f"train_dataloader = dict(dataset=dict(type='CustomDataset', data_root={str(tmp_path)!r}, data_prefix='birds'))"
    )
    for options in ('groups=cub', 'groups.rule=last_word'):
        model = _mixed_by_shell(file, '--label-smoothing', 'alsr', '--label-smoothing-cfg', options).model
        ((_, loss),) = label_tables(MODELS.build(model))
        assert loss.taxonomy.neighbours == [[1], [0], []]


@pytest.mark.parametrize('method', METHODS)
def test_each_method_is_a_head(method: str) -> None:
    head = MODELS.build(distill(_plain(), TEACHER, method).model.head)
    assert isinstance(head, DistillHead) and head.active


def test_options_go_where_they_belong() -> None:
    head = distill(_plain(), TEACHER, 'fnkd', tau=8, loss_weight=4, hard_weight=0.5, warmup=0.25).model.head
    assert head == dict(
        type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=8, loss_weight=4), hard_weight=0.5, warmup=0.25
    )
    assert distill(_plain(), TEACHER, 'kd', temperature=1).model.head.soft_loss.temperature == 1


def test_what_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(SetupError, match=r'fnkd has no option tua, T; it has .*hard_weight, .*tau, warmup'):
        distill(_plain(), TEACHER, tua=8, T=1)
    with pytest.raises(SetupError, match='has no option soft_loss'):
        distill(_plain(), TEACHER, soft_loss=dict(type='KDLoss'))
    with pytest.raises(SetupError, match=r"method 'kdd' is unknown; .*fnkd, .*kd"):
        distill(_plain(), TEACHER, 'kdd')
    with pytest.raises(SetupError, match=r'has a teacher already.*--cfg-options model\.teacher'):
        distill(distill(_plain(), TEACHER), TEACHER)
    with pytest.raises(SetupError, match='has no model'):
        distill(Config(dict(a=1)), TEACHER)
    with pytest.raises(SetupError, match='has no model'):
        smooth_labels(Config(dict(a=1)))
    with pytest.raises(SetupError, match='at least one teacher'):
        distill(_plain(), [])
    with pytest.raises(SetupError, match=r"'lsd' is unknown; .* alsr, lsr\."):
        smooth_labels(_plain(), 'lsd')
    with pytest.raises(SetupError, match=r'lsr has no option groups; it has eps, loss_weight\.'):
        smooth_labels(_plain(), 'lsr', groups='cub')
    with pytest.raises(SetupError, match='alsr needs the option groups; see ALSRLoss'):
        smooth_labels(_plain(), 'alsr')


@pytest.mark.parametrize(
    ('head', 'task'),
    [
        ('MultiLabelLinearClsHead', 'a multi-label classifier'),
        ('LinearRegressionHead', 'a regression model'),
        ('MAEPretrainHead', 'not a classifier'),
        ('NoSuchHead', 'no model NoSuchHead'),
    ],
)
def test_labels_of_other_tasks_are_not_smoothed(head: str, task: str) -> None:
    if head == 'LinearRegressionHead' and not hasattr(heads, 'RegressionHead'):
        pytest.skip('this MMPretrain has no regression head')
    with pytest.raises(SetupError, match=task):
        smooth_labels(_plain(resnet(head=dict(type=head, num_classes=CLASSES, in_channels=32))))
    with pytest.raises(SetupError, match=r'not a classifier \(ImageClassifier\)'):
        smooth_labels(_plain(resnet(head=None)))


def test_smoothed_labels_replace_the_whole_loss() -> None:
    stated = resnet()
    stated['head']['loss'] = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='classy_vision')
    groups = [[1], [0], [], []]
    alsr = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.3, groups=groups)
    assert smooth_labels(_plain(stated), 'alsr', eps_near=0.3, groups=groups).model.head.loss == alsr
    assert smooth_labels(_plain(timm_student())).model.loss == SMOOTHINGS['lsr'], 'no head: the model has the loss'
    of_student = smooth_labels(_plain(distilled(stated, TEACHER), custom_imports=None))
    assert of_student.model.student.head.loss == SMOOTHINGS['lsr'] and is_distilled(of_student)
    assert of_student.custom_imports == dict(imports=['fnkd_plugin'], allow_failed_imports=False)


@pytest.mark.parametrize(
    ('stated', 'imports'),
    [
        (None, dict(imports=['fnkd_plugin'], allow_failed_imports=False)),
        (dict(imports='mine'), dict(imports=['fnkd_plugin', 'mine'], allow_failed_imports=False)),
        (dict(imports=['a', 'fnkd_plugin']), dict(imports=['a', 'fnkd_plugin'])),
        (dict(imports=['a'], allow_failed_imports=True), dict(imports=['fnkd_plugin', 'a'], allow_failed_imports=True)),
    ],
)
def test_the_plugin_is_imported(stated: dict | None, imports: dict) -> None:
    assert distill(_plain(custom_imports=stated), TEACHER).custom_imports == imports


def test_names_of_teachers() -> None:
    assert teacher_config('timm:resnet152', 'F') == dict(type='TimmTeacher', model='resnet152', checkpoint='F')
    assert teacher_config('timm:resnet50.a1_in1k') == dict(
        type='TimmTeacher', model='resnet50.a1_in1k', pretrained=True
    )
    assert teacher_config('hf:google/vit') == dict(type='HuggingFaceTeacher', path='google/vit')
    assert teacher_config('resnet50_8xb32_in1k') == dict(type='MMPretrainTeacher', config='resnet50_8xb32_in1k')
    assert teacher_config('a/b.py', 'F') == dict(type='MMPretrainTeacher', config='a/b.py', checkpoint='F')
    with pytest.raises(SetupError, match='hf:x: needs no checkpoint'):
        teacher_config('hf:x', 'F')
    several = distill(_plain(), ['timm:resnet18', TEACHER]).model.teacher
    assert several == dict(type='EnsembleTeacher', teachers=[teacher_config('timm:resnet18'), TEACHER])


def test_several_teachers_and_a_shipped_config_are_built(tmp_path: Path) -> None:
    shipped = load_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py').model
    weights = tmp_path / 'weights.pth'
    torch.save(MODELS.build(shipped).state_dict(), weights)
    own = teacher_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py', str(weights)) | dict(channel_order='rgb')
    timms = teacher_config('timm:test_resnet', str(timm_checkpoint(tmp_path, num_classes=10)))
    model = MODELS.build(distill(_plain(resnet(num_classes=10)), [timms, own], 'kd').model)
    assert isinstance(model, Distiller)
    teacher = model.distillation.teacher
    assert isinstance(teacher, EnsembleTeacher)
    assert [type(one) for one in teacher.teachers] == [TimmTeacher, MMPretrainTeacher]


def test_a_name_of_the_zoo_is_built(tmp_path: Path) -> None:
    name, weights = 'resnet18_8xb16_cifar10', tmp_path / 'weights.pth'
    torch.save(MODELS.build(load_config(f'mmpretrain::resnet/{name}.py').model).state_dict(), weights)
    teacher = MODELS.build(teacher_config(name, str(weights)))
    assert isinstance(teacher, MMPretrainTeacher) and teacher.num_classes == 10


def test_each_checkpoint_is_its_teachers(tmp_path: Path) -> None:
    plain, _ = write_configs(tmp_path, Path('t.pth'))
    flags = ['--teacher', 'timm:a', '--teacher', 'b.py', '--teacher-checkpoint', 'F', '--teacher', 'timm:c']
    assert _mixed_by_shell(plain, *flags, '--teacher-checkpoint', 'G').model.teacher.teachers == [
        teacher_config('timm:a'),
        teacher_config('b.py', 'F'),
        teacher_config('timm:c', 'G'),
    ]
    for wrong in (['--teacher-checkpoint', 'F'], ['--teacher', 'a', *['--teacher-checkpoint', 'F'] * 2]):
        with pytest.raises(SystemExit):
            _mixed_by_shell(plain, *wrong)


@pytest.mark.parametrize(
    'flags',
    [
        ['--teacher', 'timm:a', '--distill-cfg', 'method=kd'],
        ['--teacher', 'timm:a', '--distill-cfg', 'teacher=b'],
        ['--label-smoothing', 'lsr', '--label-smoothing-cfg', 'method=alsr'],
    ],
)
def test_options_with_a_flag_of_their_own_are_refused(flags: list[str], tmp_path: Path) -> None:
    plain, _ = write_configs(tmp_path, Path('t.pth'))
    with pytest.raises(SetupError, match=r'-cfg: (method|teacher) is not an option of a method'):
        _mixed_by_shell(plain, *flags)


@pytest.mark.parametrize('teacher', [None, torch.nn.Identity(), [TEACHER, 3]])
def test_teachers_are_names_or_configs(teacher: Any) -> None:
    with pytest.raises(SetupError, match=r'a teacher by name or by config, not a (NoneType|Identity|int)'):
        distill(_plain(), teacher)


def test_options_of_the_plain_model_come_first_those_of_the_teacher_last(tmp_path: Path) -> None:
    plain, _ = write_configs(tmp_path, Path('t.pth'))
    options = ['model.head.type=StackedLinearClsHead', 'model.backbone.depth=34', 'model.teacher.input_size=64']
    more = ['model.head.soft_loss.tau=3', 'model.pixels.channel_order=rgb', 'data_preprocessor.to_rgb=False']
    model = _mixed_by_shell(plain, '--teacher', 'timm:a', '--cfg-options', *options, *more).model
    assert model.student.head.type == 'StackedLinearClsHead' and model.student.backbone.depth == 34
    assert model.teacher.input_size == 64 and model.pixels == dict(channel_order='rgb')
    assert model.head == dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=3))


@pytest.mark.parametrize(
    ('flags', 'folder'),
    [
        ([], 'plain'),
        (['--teacher', 'timm:a'], 'fnkd_plain'),
        (['--teacher', 'timm:a', '--distill', 'kd', '--label-smoothing', 'lsr'], 'lsr_kd_plain'),
        (['--label-smoothing', 'lsr', '--work-dir', 'here'], 'here'),
    ],
)
def test_each_method_has_a_work_dir_of_its_own(flags: list[str], folder: str, tmp_path: Path) -> None:
    plain, _ = write_configs(tmp_path, Path('t.pth'))
    cfg, args = _mixed_by_shell(plain, *flags), parse_args([str(plain), *flags])
    merge_arguments(cfg, args)
    assert Path(cfg.work_dir).name == folder


def test_the_common_data_preprocessor_ends_at_the_student(tmp_path: Path) -> None:
    student = {key: value for key, value in resnet().items() if key != 'data_preprocessor'}
    mine = preprocessor() | dict(std=[50.0, 51.0, 52.0])
    mixed = distill(_plain(student, data_preprocessor=mine), timm_teacher(tmp_path))
    runner = train(mixed.model, tmp_path, data_preprocessor=mine, train_cfg=dict(by_epoch=True, max_epochs=1))
    assert isinstance(runner.model, Distiller) and isinstance(runner.model.data_preprocessor, ClsDataPreprocessor)
    assert runner.model.data_preprocessor.std.flatten().tolist() == [50.0, 51.0, 52.0]


def test_a_run_outside_of_the_tools_stores_plain_checkpoints_and_resumes_exactly(tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Runner:
        plain = _plain(work_dir=str(tmp_path / name), **options)
        plain.train_dataloader.dataset.pipeline.insert(0, dict(type='RandomFlip', prob=0.5))
        runner = Runner.from_cfg(distill(plain, timm_teacher(tmp_path), 'kd'))
        runner.train()
        return runner

    whole = run('whole')
    resumed = run('resumed', load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), resume=True)
    assert whole.iter == resumed.iter == 8
    assert_same_weights(whole.model.state_dict(), resumed.model.state_dict())
    saved = torch.load(tmp_path / 'whole' / 'epoch_2.pth', weights_only=True)
    assert_same_weights(saved['state_dict'], whole.model.state_dict())
