"""FNKD and the other soft losses as timm's training tasks."""

import copy
import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat, quantize_dynamic

import fnkd_plugin.timm
from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses import DKDLoss, FNKDLoss, KDLoss, LSRLoss
from fnkd_plugin.teachers import CallableTeacher, EnsembleTeacher, TimmTeacher
from fnkd_plugin.timm import DistillationTask, FNKDTask
from tests.helpers import (
    CLASSES,
    MEAN,
    STD,
    assert_same_weights,
    build,
    distilled,
    raw_batch,
    timm_checkpoint,
    timm_student,
    timm_teacher,
)
from tests.test_stack import run_bare

pytestmark = pytest.mark.upstream

LABELS = torch.tensor([0, 1, 2, 3])


def _model(seed: int = 0, name: str = 'test_resnet', **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, **{'num_classes': CLASSES, **options})


def _images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-12, name


def _two_logits(model: nn.Module, images: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    f = model.forward_head(model.forward_features(images), pre_logits=True)
    r = f.norm(dim=1, keepdim=True)
    return model.fc(f), model.fc(f / r * r.clamp(max=tau)), r


def test_loss_and_gradients_are_the_authors() -> None:
    """In fp64 but for the teacher, with some norms clipped; theirs written without any of our code."""
    student, teacher, images = _model(0).double(), _model(1).eval(), _images().double()
    nn.init.normal_(student.fc.weight)
    ours = copy.deepcopy(student)
    with torch.no_grad():
        tau = float(_two_logits(student, images, 1.0)[2].sort(dim=0).values[1:3].mean())
        q = _two_logits(teacher, images.float(), tau)[1].softmax(1).double()
    z, z_fn, norms = _two_logits(student, images, tau)
    assert (norms > tau).sum() == 2
    hard, soft = F.cross_entropy(z, LABELS), -9 * (q * z_fn.log_softmax(1)).sum(1).mean()
    (0.5 * hard + soft).backward()

    result = FNKDTask(ours, teacher, tau=tau, task_loss_weight=0.5, mode='clip')(images, LABELS)
    result['loss'].backward()
    for name, expected in (('task_loss', hard), ('kd_loss', soft), ('loss', 0.5 * hard + soft), ('output', z)):
        torch.testing.assert_close(result[name], expected, rtol=1e-6, atol=1e-9, check_dtype=False)
    assert result['tau'] == pytest.approx(tau)
    _assert_close(_gradients(ours), _gradients(student))


@pytest.mark.parametrize('soft_loss', ['FNKDLoss', 'KDLoss'])
def test_a_step_is_that_of_a_distiller(tmp_path: Path, soft_loss: str) -> None:
    """The same student, teacher and batch under MMPretrain, the teacher with a normalisation of its own."""
    student = build(distilled(timm_student(), timm_teacher(tmp_path), dict(type=soft_loss)))
    ours = copy.deepcopy(student.model)
    data = student.data_preprocessor(raw_batch(), training=True)
    losses = student(**data, mode='loss')
    (losses['loss_hard'] + losses['loss_soft']).backward()

    teacher = timm.create_model('test_resnet', num_classes=CLASSES, checkpoint_path=str(timm_checkpoint(tmp_path)))
    kind = {'FNKDLoss': FNKDLoss, 'KDLoss': KDLoss}[soft_loss]
    mean, std = [m / 255 for m in MEAN], [s / 255 for s in STD]
    task = DistillationTask(ours, teacher, soft_loss=kind(), mean=mean, std=std)
    result = task(data['inputs'], torch.cat([sample.gt_label for sample in data['data_samples']]))
    result['loss'].backward()
    torch.testing.assert_close(result['task_loss'], losses['loss_hard'], rtol=1e-6, atol=0)
    torch.testing.assert_close(result['kd_loss'], losses['loss_soft'], rtol=1e-6, atol=0)
    assert {k: float(v) for k, v in result.items() if k == 'tau'} == student.distillation.head.log_vars()
    _assert_close(_gradients(ours), _gradients(student.model))


def test_off_is_plain() -> None:
    """With soft weight 0 as timm's own task, bit for bit, dropout too; the teacher is not run."""

    def train(make: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, Tensor]:
        student = _model(0, 'test_vit', img_size=32, drop_rate=0.5)
        torch.manual_seed(5)
        task = make(student).train()
        optimiser = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            optimiser.zero_grad()
            task(_images(step), LABELS)['loss'].backward()
            optimiser.step()
        return student, torch.rand(3)

    class Silent(CallableTeacher):
        def predict(self, *args: Any) -> Any:
            raise AssertionError('the teacher was run')

    teacher = Silent(_model(1), mean=[127.5] * 3, std=[127.5] * 3)

    def distilling(student: nn.Module) -> nn.Module:
        return FNKDTask(student, teacher, distill_loss_weight=0)

    plain, random = train(ClassificationTask)
    found, after = train(distilling)
    assert_same_weights(found.state_dict(), plain.state_dict())
    assert torch.equal(random, after)


class _Torch(nn.Sequential):
    """A classifier of plain torch, without timm's attributes."""

    def __init__(self, classes: int = CLASSES) -> None:
        pool = nn.AdaptiveAvgPool2d(2)
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(32, classes))


def test_the_teacher_is_not_registered_and_frozen() -> None:
    student, teacher = _model(0), _model(1)
    before = copy.deepcopy(teacher.state_dict())
    task = FNKDTask(student, teacher).train()
    assert [*task.parameters()] == [*student.parameters()]
    assert task.get_trainable_module() is student
    result = task(_images(), LABELS)
    result['loss'].backward()
    assert not any(module.training for module in task.teacher.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in task.teacher.model.parameters())
    assert_same_weights(teacher.state_dict(), before)


def test_tasks_do_not_change_the_models() -> None:
    """Three tasks on one pair: no hooks, and the caller's teacher can be trained on; its weights are not copied."""
    student, teacher = _model(0), _model(1)
    tasks = [FNKDTask(student, teacher).train() for _ in range(3)]
    losses = [task(_images(), LABELS)['loss'] for task in tasks]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    for model in (student, teacher):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(module.training for module in model.modules()) and all(p.requires_grad for p in model.parameters())
    shared = {p.data_ptr() for p in teacher.parameters()}
    assert {p.data_ptr() for p in tasks[0].teacher.model.parameters()} == shared
    assert tasks[0].student() is student


def _quantised_aware(model: nn.Module) -> nn.Module:
    model.train().qconfig = get_default_qat_qconfig('fbgemm')
    return prepare_qat(model)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'export',
    [
        lambda model: torch.jit.script(model.eval()),
        lambda model: quantize_dynamic(model.eval(), {nn.Linear}),
        _quantised_aware,
        lambda model: torch.export.export(model.eval(), (_images(),)).module(),
    ],
    ids=['script', 'quantize_dynamic', 'prepare_qat', 'export'],
)
@pytest.mark.parametrize('compiled', [False, True])
def test_a_student_is_exported_as_a_plain_model(export: Callable, compiled: bool) -> None:
    student = _model(0)
    task = FNKDTask(student, _model(1))
    if compiled:
        task.compile(backend='eager')
    task(_images(), LABELS)['loss'].backward()
    assert export(task.student() if compiled else student)(_images()).shape == (4, CLASSES)


def test_students_and_teachers_of_images_that_are_not_square() -> None:
    images = torch.randn(2, 3, 64, 32)

    def fixed() -> nn.Module:
        return _model(0, 'vit_tiny_patch16_224', img_size=(64, 32), embed_dim=32, depth=1, num_heads=2)

    for student, teacher in ((fixed(), _model(1)), (_model(1), fixed()), (fixed(), fixed())):
        task = FNKDTask(student, teacher, tau=2.0)
        seen: list[Tensor] = []
        task.teacher.model.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        task(images, LABELS[:2])['loss'].backward()
        assert seen[0].shape == images.shape


def test_one_logit_and_several_labels_are_refused() -> None:
    one = [_model(seed, num_classes=1) for seed in range(2)]
    with pytest.raises(SetupError, match='the student ResNet has 1 class'):
        DistillationTask(*one, nn.BCEWithLogitsLoss(), soft_loss=KDLoss())
    task = DistillationTask(_model(0), _model(1), nn.BCEWithLogitsLoss(), soft_loss=KDLoss())
    with pytest.raises(ValueError, match='the first batch sum to 1 to 2'):
        task(_images(), torch.tensor([[1.0, 0, 0, 0]] * 3 + [[1.0, 1, 0, 0]]))
    task(_images(), F.one_hot(LABELS, CLASSES).float())['loss'].backward()


def test_each_sees_the_images_under_its_own_normalisation() -> None:
    student, teacher = _model(0, 'resnet18'), _model(1)
    seen: list[Tensor] = []
    task = FNKDTask(student, teacher)
    for model in (student, task.teacher.model):
        model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = _images()
    task(images, LABELS)
    (of_teacher, of_student) = seen
    assert torch.equal(of_student, images)
    mean, std = (torch.tensor(student.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    torch.testing.assert_close(of_teacher, (images * std + mean - 0.5) / 0.5, rtol=0, atol=1e-6)


def test_a_teacher_by_name_has_the_weights_of_its_file(tmp_path: Path) -> None:
    path = timm_checkpoint(tmp_path)
    module = timm.create_model('test_resnet', num_classes=CLASSES, checkpoint_path=str(path))
    by_name = FNKDTask(_model(0), 'test_resnet', teacher_pretrained_path=str(path))
    results = [task(_images(), LABELS)['kd_loss'] for task in (by_name, FNKDTask(_model(0), module))]
    assert torch.equal(*results)


def test_classes_are_found_by_name(tmp_path: Path) -> None:
    path = timm_checkpoint(tmp_path, num_classes=5)
    classes = ['wren', 'owl', 'x', 'tit', 'gull']
    teacher = TimmTeacher('test_resnet', path, classes=classes, class_map='by-name')
    by_name = FNKDTask(_model(0), teacher, classes=['gull', 'owl', 'tit', 'wren'])
    by_index = FNKDTask(_model(0), TimmTeacher('test_resnet', path, class_map=[4, 1, 3, 0]))
    assert torch.equal(*(task(_images(), LABELS)['kd_loss'] for task in (by_name, by_index)))
    with pytest.raises(SetupError, match=r"order \(0: 'owl', not 'wren'"):
        FNKDTask(
            _model(0),
            TimmTeacher('test_resnet', timm_checkpoint(tmp_path), classes=classes[:4]),
            classes=['owl', 'wren', 'x', 'tit'],
        )


def test_teachers_of_this_package_teach_too(tmp_path: Path) -> None:
    """With a class map, and several at once."""
    path = timm_checkpoint(tmp_path, num_classes=7)
    mapped = TimmTeacher('test_resnet', checkpoint=path, class_map=[6, 4, 2, 0])
    both = EnsembleTeacher([mapped, TimmTeacher('test_resnet', checkpoint=timm_checkpoint(tmp_path))])
    result = FNKDTask(_model(0), both)(_images(), LABELS)
    assert result['loss'].isfinite()
    v = timm.create_model('test_resnet', num_classes=7, checkpoint_path=str(path)).eval()(_images())[:, [6, 4, 2, 0]]
    student = _model(0)
    kd = DistillationTask(student, mapped, soft_loss=KDLoss(temperature=1.0))(_images(), LABELS)
    expected = -(v.softmax(1) * kd['output'].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(kd['kd_loss'], expected)


def test_training_in_timms_loop_and_its_resumption(tmp_path: Path) -> None:
    """Optimiser, EMA, checkpoints as timm's train.py makes them; they hold the student's own keys, and tau."""

    def start() -> tuple[FNKDTask, torch.optim.Optimizer]:
        teacher = _model(1)
        nn.init.normal_(teacher.fc.weight)
        task = FNKDTask(_model(0), teacher, criterion_kwargs=dict(smoothing=0.1), verbose=False)
        task.setup_ema(decay=0.5)
        return task.train(), create_optimizer_v2(task.get_trainable_module(), opt='sgd', lr=0.02)

    def steps(task: FNKDTask, optimiser: torch.optim.Optimizer, seeds: range) -> list[float]:
        losses = []
        for seed in seeds:
            optimiser.zero_grad()
            result = task(_images(seed % 2), LABELS)
            result['loss'].backward()
            nn.utils.clip_grad_norm_(task.get_clip_parameters(), 10.0)
            optimiser.step()
            task.update_ema()
            losses.append(result['kd_loss'].item())
        return losses

    task, optimiser = start()
    first = steps(task, optimiser, range(6))
    saver = CheckpointSaver(task.get_trainable_module(), optimiser, task=task, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    last = steps(task, optimiser, range(6, 24))
    assert sum(last[-2:]) < sum(first[:2])

    path = tmp_path / 'last.pth.tar'
    plain = timm.create_model('test_resnet', num_classes=CLASSES)
    stored = torch.load(path, weights_only=True)
    assert list(stored['state_dict']) == list(stored['state_dict_ema']) == list(plain.state_dict())
    timm.create_model('test_resnet', num_classes=CLASSES, checkpoint_path=str(path))

    again, optimiser = start()
    assert resume_task_checkpoint(again, str(path), optimiser) == 1
    load_task_ema_checkpoint(again, str(path))
    assert steps(again, optimiser, range(6, 24)) == last
    assert again.soft_loss.tau == task.soft_loss.tau
    for ema in (False, True):
        ours, theirs = (t.get_checkpoint_state(ema)[f'state_dict{"_ema" * ema}'] for t in (again, task))
        assert_same_weights(ours, theirs)


def test_a_compiled_student_computes_the_same() -> None:
    student, teacher = _Torch(), _Torch()
    task, compiled = (FNKDTask(copy.deepcopy(student), teacher) for _ in range(2))
    compiled.compile(backend='eager', fullgraph=True)
    results = [t(_images(), LABELS) for t in (task, compiled)]
    for result in results:
        result['loss'].backward()
    torch.testing.assert_close(results[0]['loss'], results[1]['loss'])
    states = [t.get_checkpoint_state()['state_dict'] for t in (task, compiled)]
    assert_same_weights(*states)
    assert compiled.get_eval_model()(_images()).shape == (4, CLASSES)


def test_mixup_and_a_loss_that_reads_labels() -> None:
    """The heavier class counts, as under MMPretrain."""
    mixed = 0.7 * F.one_hot(LABELS, CLASSES) + 0.3 * F.one_hot(LABELS.flip(0), CLASSES)
    soft = DistillationTask(_model(0), _model(1), soft_loss=DKDLoss(), criterion_kwargs=dict(soft_targets=True))
    hard = DistillationTask(_model(0), _model(1), soft_loss=DKDLoss(), criterion=LSRLoss(eps=0.1))
    assert torch.equal(soft(_images(), mixed)['kd_loss'], hard(_images(), LABELS)['kd_loss'])
    torch.testing.assert_close(
        hard(_images(), LABELS)['task_loss'], F.cross_entropy(_model(0)(_images()), LABELS, label_smoothing=0.1)
    )


def test_plain_torch_models() -> None:
    """If neither has a normalisation, both get the batch unchanged."""
    student, teacher = _Torch(), _Torch()
    result = FNKDTask(student, teacher, tau=1e9, distill_loss_weight=1, mode='clip')(_images(), LABELS)
    torch.testing.assert_close(result['output'], student(_images()))
    q = teacher(_images()).softmax(1)
    torch.testing.assert_close(result['kd_loss'], -(q * student(_images()).log_softmax(1)).sum(1).mean())


def test_under_autocast_the_soft_loss_is_in_fp32() -> None:
    """As in timm's train.py, whose forward runs under autocast; the teacher follows it."""
    student, teacher = _Torch(), _Torch()
    task = FNKDTask(student, teacher, tau=0.5)
    full = task(_images(), LABELS)
    outputs: list[Tensor] = []
    task.teacher.model.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.autocast('cpu', torch.bfloat16):
        half = task(_images(), LABELS)
    assert half['output'].dtype == torch.bfloat16 and half['kd_loss'].dtype == torch.float32
    torch.testing.assert_close(half['kd_loss'], full['kd_loss'], rtol=1e-2, atol=0)
    assert outputs[0].dtype == torch.bfloat16


def _two_heads() -> nn.Module:
    return VisionTransformerDistilled(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=4)


def test_a_student_of_two_heads_trains_with_kd_but_not_fnkd() -> None:
    with pytest.raises(SetupError, match=r'student VisionTransformerDistilled .* no single last affine .*KDLoss'):
        FNKDTask(_two_heads(), _Torch())
    with pytest.raises(SetupError, match=r'teacher VisionTransformerDistilled .* no single last affine .*KDLoss'):
        FNKDTask(_Torch(), _two_heads())
    student = _two_heads()
    DistillationTask(student, _Torch(), soft_loss=KDLoss())(_images(), LABELS)['loss'].backward()
    assert all(gradient.isfinite().all() for gradient in _gradients(student).values())
    assert {'head.weight', 'head_dist.weight'} <= _gradients(student).keys()


@pytest.mark.parametrize(
    ('student', 'teacher', 'options', 'message'),
    [
        (_model, lambda: _model(num_classes=0), {}, 'teacher ResNet has no classifier'),
        (lambda: _model(num_classes=0), _model, {}, r'student ResNet does not return logits .*num_classes > 0'),
        (_model, lambda: _model(num_classes=7), {}, 'the student has 4 classes, the teacher ResNet has 7'),
        (_model, lambda: 'test_resnett', {}, 'has no model .*test_resnet'),
        (_model, lambda: 'test_resnet', dict(teacher_pretrained_path='no.pth'), 'no.pth does not exist'),
        (_model, lambda: 3, {}, 'must be a timm model.s name, a module or a Teacher, but is int'),
        (_model, _Torch, {}, "teacher's mean and std are unknown"),
        (_Torch, _model, {}, "student's mean and std are unknown"),
        (_model, _model, dict(mean=MEAN, std=STD), 'on the 0 to 1 scale'),
        (_model, _model, dict(task_loss_weight=-1), 'FNKDTask: task_loss_weight must be'),
        (_model, _model, dict(tau='atuo'), "tau must be a number > 0 or 'auto'"),
    ],
)
def test_wrong_setups_raise(student: Any, teacher: Any, options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        FNKDTask(student(), teacher(), **options)


def test_a_student_is_not_its_own_teacher() -> None:
    student = _model()
    with pytest.raises(SetupError, match='the teacher is the student itself'):
        FNKDTask(student, student)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_weights_of_other_classes_are_refused(tmp_path: Path) -> None:
    """Never a random head: timm would drop the one that does not fit."""
    path = str(timm_checkpoint(tmp_path, num_classes=7))
    with pytest.raises(SetupError, match=r'the student has 4 classes, the teacher TimmTeacher\(test_resnet\) has 7'):
        FNKDTask(_model(), 'test_resnet', teacher_pretrained_path=path)


def test_examples_run() -> None:
    assert doctest.testmod(fnkd_plugin.timm).failed == 0


TWO_PROCESSES = """
import os, tempfile
import torch, torch.multiprocessing as mp
from torch import nn
from fnkd_plugin.timm import FNKDTask

def model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))

def gradients(task, rows):
    torch.manual_seed(2)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    task(images[rows], labels[rows])['loss'].backward()
    return [p.grad for p in task.get_trainable_module().parameters()]

def work(rank, store):
    torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    task = FNKDTask(model(0), model(1)).prepare_distributed()
    two = gradients(task, slice(2 * rank, 2 * rank + 2))
    tau = task.soft_loss.tau
    assert list(task.get_checkpoint_state()['state_dict']) == list(model(0).state_dict())
    torch.distributed.destroy_process_group()
    alone = FNKDTask(model(0), model(1))
    for a, b in zip(two, gradients(alone, slice(4)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert abs(tau - alone.soft_loss.tau) < 1e-6, (tau, alone.soft_loss.tau)

mp.start_processes(work, (tempfile.mktemp(),), nprocs=2, start_method='fork')
"""


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    done = run_bare(TWO_PROCESSES)
    assert done.returncode == 0, done.stderr[-2000:]
