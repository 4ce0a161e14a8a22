"""What must always hold (docs/design.md): a test of each invariant's name, on configs that bite."""

import copy
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from fnkd_plugin import Distiller, Prediction
from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses import SoftTargetLoss
from fnkd_plugin.losses.scaled_logits import ScaledLogits
from fnkd_plugin.teachers import ClassMap, PixelFormat, Teacher
from fnkd_plugin.teachers.teacher import ModelTeacher
from tests.helpers import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    assert_same_weights,
    build,
    config,
    cosine,
    distilled,
    preprocessor,
    raw_batch,
    resnet,
    timm_checkpoint,
    timm_student,
    timm_teacher,
    vit,
)

# --- 1. Off is plain ---------------------------------------------------------------------------


def _draw() -> None:
    random.random()
    np.random.rand(7)
    torch.rand(7)


@MODELS.register_module(force=True)
class DrawingTeacher(Teacher):
    """Draws from every global generator while being built, prepared and run; ``broken`` raises when run."""

    has_feature_norm = True

    def __init__(self, broken: bool = False) -> None:
        self.name, self.broken, self.runs = 'DrawingTeacher', broken, 0
        self.class_map = ClassMap(self.name, CLASSES)
        _draw()

    def prepare(self, source: PixelFormat) -> None:
        _draw()

    def predict(self, images: Tensor, data_samples: Sequence[Any] | None = None) -> Prediction:
        if self.broken:
            raise AssertionError('the teacher was run')
        self.runs += 1
        _draw()
        count = len(images)
        return Prediction(torch.randn(count, CLASSES), torch.rand(count) + 1, torch.randn(CLASSES))


@MODELS.register_module(force=True)
class ZeroLoss(SoftTargetLoss):
    """Has a weight, so that the teacher is run; is zero, so that nothing may change."""

    def __init__(self) -> None:
        super().__init__()
        _draw()

    def scaled_logits(self, prediction: Prediction) -> ScaledLogits:
        return ScaledLogits(prediction.logits)

    def forward(self, student: Prediction, teacher: Prediction, labels: Tensor | None = None) -> Tensor:
        return 0.0 * super().forward(student, teacher, labels)


_MIXES = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)], probs=[0.5, 0.4])


def _bite_resnet() -> tuple[dict, dict]:
    """Mixup and CutMix, EMA, gradient accumulation, augmentations that draw."""
    return resnet(train_cfg=_MIXES), dict(
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True),
            accumulative_counts=2,
            clip_grad=dict(max_norm=5.0),
        ),
        custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True)],
    )


def _bite_vit() -> tuple[dict, dict]:
    """Layer-wise decay, dropout and stochastic depth, parameter groups by name with a leading dot."""
    return vit(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8))), dict(
        optim_wrapper=dict(
            optimizer=dict(
                type='AdamW',
                lr=0.01,
                weight_decay=0.3,
                _scope_='mmpretrain',
            ),
            constructor='LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(
                layer_decay_rate=0.5, custom_keys={'.ln': dict(decay_mult=0.0), '.cls_token': dict(decay_mult=0.0)}
            ),
        ),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=2, by_epoch=True, convert_to_iter_based=True)],
    )


def _bite_switch() -> tuple[dict, dict]:
    """SwitchRecipeHook: other augmentations, batch augments and loss from the second epoch."""
    switch = dict(
        type='SwitchRecipeHook',
        schedule=[
            dict(
                action_epoch=2,
                train_pipeline=[dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')],
                batch_augments=dict(augments=dict(type='CutMix', alpha=1.0)),
                loss=dict(type='LabelSmoothLoss', label_smooth_val=0.3, mode='original'),
            )
        ],
    )
    return resnet(train_cfg=dict(augments=dict(type='Mixup', alpha=0.2))), dict(custom_hooks=[switch])


def _bite_timm() -> tuple[dict, dict]:
    """A timm student with stochastic depth, mixup and EMA."""
    return timm_student('test_vit', img_size=SIZE, drop_path_rate=0.2, train_cfg=_MIXES), dict(
        custom_hooks=[dict(type='EMAHook', momentum=0.1)]
    )


def _bite_cosine() -> tuple[dict, dict]:
    """Logits that come from no affine layer, with an angular margin, mixup and EMA."""
    return cosine(margins=0.2, train_cfg=_MIXES), dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])


BITING = {
    'resnet': _bite_resnet,
    'vit': _bite_vit,
    'switch': _bite_switch,
    'timm': _bite_timm,
    'cosine': _bite_cosine,
}
_PIPELINE = [
    dict(type='RandomCrop', crop_size=SIZE, padding=4),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]


def _outcome(model: dict, work_dir: Path, options: dict) -> tuple[Runner, dict[str, Any]]:
    """Everything that training leaves: weights, EMA, optimiser, random streams."""
    cfg = config(model, work_dir, **options)
    cfg.train_dataloader.dataset.pipeline = _PIPELINE
    runner = Runner.from_cfg(cfg)
    random.seed(0)
    runner.train()
    ema = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
    return runner, dict(
        weights=runner.model.state_dict(),
        ema=ema[0].state_dict() if ema else {},
        optimizer=runner.optim_wrapper.state_dict(),
        parameters=[name for name, _ in runner.model.named_parameters()],
        random=(torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),
        loss=runner.message_hub.get_scalar('train/loss').data[0].tolist(),
    )


@pytest.fixture(scope='module')
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Runner, dict]]:
    """What plain training of a biting config leaves, made once."""
    made: dict[str, tuple[Runner, dict]] = {}

    def get(name: str) -> tuple[Runner, dict]:
        if name not in made:
            model, options = BITING[name]()
            made[name] = _outcome(model, tmp_path_factory.mktemp(name), options)
        return made[name]

    return get


@pytest.mark.upstream
@pytest.mark.parametrize('off', ['weight 0, broken teacher', 'weight 1, zero loss, drawing teacher'])
@pytest.mark.parametrize('name', BITING)
def test_off_is_plain(name: str, off: str, plain: Callable, tmp_path: Path) -> None:
    broken = off.startswith('weight 0')
    model, options = BITING[name]()
    soft_loss = dict(type='FNKDLoss', loss_weight=0.0) if broken else dict(type='ZeroLoss')
    teacher = dict(type='DrawingTeacher', broken=broken)
    runner, found = _outcome(distilled(model, teacher, soft_loss), tmp_path, options)
    expected_runner, expected = plain(name)

    assert isinstance(runner.model, Distiller) and not isinstance(expected_runner.model, Distiller)
    assert runner.model.distillation.teacher.runs == (0 if broken else 8)
    assert_same_weights(found['weights'], expected['weights'])
    assert_same_weights(found['ema'], expected['ema'])
    for key in ('parameters', 'random', 'loss'):
        assert found[key] == expected[key], key
    assert str(found['optimizer']) == str(expected['optimizer'])
    for group, plain_group in zip(
        runner.optim_wrapper.param_groups, expected_runner.optim_wrapper.param_groups, strict=True
    ):
        assert {k: v for k, v in group.items() if k != 'params'} == {
            k: v for k, v in plain_group.items() if k != 'params'
        }


def test_off_is_plain_bites(plain: Callable) -> None:
    """The configs above do what they are there for."""
    layers = {group.get('lr_scale') for group in plain('vit')[0].optim_wrapper.param_groups}
    assert layers >= {0.125, 0.25, 0.5, 1.0}
    switched = plain('switch')[0].model
    assert type(switched.head.loss_module).__name__ == 'LabelSmoothLoss'
    assert 'CutMix' in str([type(a).__name__ for a in switched.data_preprocessor.batch_augments.augments])
    runner, left = plain('resnet')
    assert runner.optim_wrapper._accumulative_counts == 2
    assert any(not torch.equal(value, left['weights'][key[7:]]) for key, value in left['ema'].items() if key != 'steps')


def test_off_is_plain_also_in_the_first_weights_and_streams() -> None:
    """Building teacher and head moves no generator, though they draw."""
    states = []
    for model in (resnet(), distilled(resnet(), dict(type='DrawingTeacher'), dict(type='ZeroLoss'))):
        random.seed(1)
        np.random.seed(1)
        built = build(model, seed=1)
        states.append((torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()))
        states[-1] += ({k: v.tolist() for k, v in built.state_dict().items()},)
    assert states[0] == states[1]


def test_off_is_plain_with_a_nan_teacher(tmp_path: Path) -> None:
    """0 * NaN is NaN: at weight 0 the teacher is not run."""
    checkpoint = timm_checkpoint(tmp_path)
    torch.save(
        {k: v * float('nan') if v.is_floating_point() else v for k, v in torch.load(checkpoint).items()}, checkpoint
    )
    model = build(distilled(resnet(), timm_teacher(tmp_path), dict(type='KDLoss', loss_weight=0.0)))
    losses = model(**model.data_preprocessor(raw_batch(), training=True), mode='loss')
    assert list(losses) == ['loss_hard'] and torch.isfinite(losses['loss_hard'])


def test_on_is_not_plain(plain: Callable, tmp_path: Path) -> None:
    """With a weight, the teacher does change the student: the tests above could fail."""
    model, options = BITING['resnet']()
    _, found = _outcome(distilled(model, timm_teacher(tmp_path)), tmp_path, options)
    changed = [k for k, v in found['weights'].items() if not torch.equal(v, plain('resnet')[1]['weights'][k])]
    assert len(changed) > 20


# --- 2. Native students ------------------------------------------------------------------------

_STOCK = """
import sys
sys.modules['fnkd_plugin'] = None  # not installed
import torch, timm
from mmengine.config import Config
from mmpretrain import get_model
images = torch.load(sys.argv[1])
for config, checkpoint, out in zip(sys.argv[2::3], sys.argv[3::3], sys.argv[4::3]):
    model = get_model(Config.fromfile(config), pretrained=checkpoint, device='cpu')
    torch.save(model.eval()(images).detach(), out)
"""


@pytest.fixture(scope='module')
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Runner, dict, Path]]:
    """Distilled students, trained for one epoch, with their plain configs and checkpoints."""
    trained = {}
    for name, student in (
        ('resnet', resnet()),
        ('vit', vit()),
        ('timm', timm_student('test_resnet', channels_last=True)),
        ('cosine', cosine()),
    ):
        folder = tmp_path_factory.mktemp(name)
        cfg = config(
            distilled(student, timm_teacher(folder)),
            folder,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        )
        cfg.default_hooks.safe = dict(type='SafeCheckpointHook')
        runner = Runner.from_cfg(cfg)
        runner.train()
        trained[name] = runner, student, folder / 'epoch_1.pth'
    return trained


@pytest.mark.upstream
@pytest.mark.parametrize('name', ['resnet', 'vit', 'timm', 'cosine'])
def test_native_students(name: str, students: dict) -> None:
    """The checkpoint holds the student alone, under its own keys, and the plain student loads it."""
    runner, student, path = students[name]
    checkpoint = torch.load(path, weights_only=True)
    stock = build(student, seed=9)
    assert list(checkpoint['state_dict']) == list(stock.state_dict())
    assert [k for k in checkpoint['ema_state_dict'] if k != 'steps'] == ['module.' + k for k in stock.state_dict()]
    stock.load_state_dict(checkpoint['state_dict'], strict=True)
    ema = next(hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)).module
    images = torch.randn(2, 3, SIZE, SIZE)
    # MMEngine stores the averaged weights as the model's own.
    assert torch.equal(stock.eval()(images), ema.eval()(images))
    assert sum('teacher' in key or 'head.soft' in key for key in checkpoint['state_dict']) == 0


@pytest.mark.upstream
def test_native_students_without_this_plugin(students: dict, tmp_path: Path) -> None:
    """In a process where it is not installed, stock MMPretrain reads config and checkpoint, and agrees."""
    from fnkd_plugin.mm.training import dump_plain_config

    images = torch.randn(2, 3, SIZE, SIZE)
    torch.save(images, tmp_path / 'images.pt')
    arguments = [str(tmp_path / 'images.pt')]
    for name, (runner, _, path) in students.items():
        cfg = copy.deepcopy(runner.cfg)
        cfg.custom_imports = dict(imports=['fnkd_plugin'], allow_failed_imports=False)
        cfg.train_dataloader.dataset.type = 'CIFAR10'  # the tests' own data set is not there
        arguments += [str(dump_plain_config(cfg, tmp_path / name)), str(path), str(tmp_path / f'{name}.pt')]
    done = subprocess.run([sys.executable, '-c', _STOCK, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (_, student, path) in students.items():
        ours = build(student)
        ours.load_state_dict(torch.load(path, weights_only=True)['state_dict'])
        torch.testing.assert_close(torch.load(tmp_path / f'{name}.pt'), ours.eval()(images).detach())


@pytest.mark.upstream
def test_native_students_in_timm(students: dict) -> None:
    """``timm.create_model(checkpoint_path=...)`` loads a TimmStudent's checkpoint, strictly, and agrees."""
    _, student, path = students['timm']
    theirs = timm.create_model('test_resnet', num_classes=CLASSES, checkpoint_path=str(path)).eval()
    ours = build(student)
    ours.load_state_dict(torch.load(path, weights_only=True)['state_dict'])
    images = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(theirs(images), ours.eval()(images))


@pytest.mark.parametrize('name', ['resnet', 'timm'])
def test_native_students_start_others_by_load_from(name: str, students: dict, tmp_path: Path) -> None:
    _, student, path = students[name]
    start = torch.load(path, weights_only=True)['state_dict']
    for i, model in enumerate((student, distilled(student, timm_teacher(tmp_path)))):
        cfg = config(model, tmp_path / str(i), load_from=str(path))
        cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.0)
        cfg.train_cfg.max_epochs = 1
        runner = Runner.from_cfg(cfg)
        runner.train()
        named = dict(runner.model.named_parameters())
        stored = {f'model.{k}' if name == 'timm' else k: v for k, v in start.items()}
        assert all(torch.equal(parameter, stored[key]) for key, parameter in named.items())


@pytest.mark.parametrize('name', ['vit', 'timm'])
def test_native_students_resume_with_ema(name: str, students: dict, tmp_path: Path) -> None:
    _, student, path = students[name]
    cfg = config(
        distilled(student, timm_teacher(tmp_path)),
        tmp_path,
        resume=True,
        load_from=str(path),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
    )
    runner = Runner.from_cfg(cfg)
    stored = torch.load(path, weights_only=True)
    seen: dict[str, Tensor] = {}

    def before_train(self: Any) -> None:
        seen.update({k: v.clone() for k, v in self.model.state_dict().items()})

    runner.train_loop  # noqa: B018 builds it
    original = type(runner.train_loop).run_epoch

    def run_epoch(loop: Any) -> None:
        before_train(runner)
        original(loop)

    runner._train_loop.run_epoch = run_epoch.__get__(runner._train_loop)
    runner.train()
    assert runner.epoch == 2 and runner.iter == 8
    # MMEngine swaps on saving and swaps back on loading.
    expected = {k.removeprefix('module.'): v for k, v in stored['ema_state_dict'].items() if k != 'steps'}
    assert_same_weights(seen, expected)


# --- 3. Frozen teachers ------------------------------------------------------------------------


class _Dropping(nn.Sequential):
    """A teacher with batch norm and heavy dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.9), nn.Flatten(), nn.Linear(512, CLASSES)
        )


def _dropping_teacher(**options: Any) -> ModelTeacher:
    torch.manual_seed(3)
    model = _Dropping().train()
    return ModelTeacher(model, model, PixelFormat.of(MEAN, STD, 'rgb'), 'Dropping', **options)


@pytest.mark.upstream
def test_frozen_teachers(tmp_path: Path) -> None:
    """In no state_dict, parameter, module, optimiser or EMA copy; always eval; untouched by training."""
    teacher = _dropping_teacher()
    before = copy.deepcopy(teacher.model.state_dict())
    model = Distiller(build(resnet()), teacher, dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=1.0)))
    runner = Runner.from_cfg(config(resnet(), tmp_path, custom_hooks=[dict(type='EMAHook', update_buffers=True)]))
    runner.model = model
    plain_names = [name for name, _ in build(resnet()).named_modules()]
    assert [name for name, _ in model.named_modules()] == plain_names
    runner.train()
    teacher_tensors = {t.data_ptr() for t in (*teacher.model.parameters(), *teacher.model.buffers())}
    optimised = {p.data_ptr() for group in runner.optim_wrapper.param_groups for p in group['params']}
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers(), *model.state_dict().values())}
    assert not teacher_tensors & (optimised | own)
    assert len(optimised) == len(list(build(resnet()).parameters()))
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    assert hook.ema_model.module._distillation is model._distillation
    assert len(hook.ema_model.state_dict()) == len(model.state_dict()) + 1
    model.train()
    assert not any(module.training for module in teacher.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert_same_weights(teacher.model.state_dict(), before)


@pytest.mark.upstream
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_frozen_teachers_predict_the_same_whatever_the_student_does(dtype: torch.dtype) -> None:
    """Eval (BN and dropout), in fp32 if stated, else in the student's autocast dtype, no graph, fit to save."""
    teacher = _dropping_teacher(**({'execution': dict(dtype='float32')} if dtype == torch.float32 else {}))
    model = Distiller(build(resnet()), teacher, dict(type='DistillHead', soft_loss=dict(type='KDLoss')))
    data = model.data_preprocessor(raw_batch(), training=True)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = teacher.model(data['inputs'])
    for train_mode in (True, False):
        model.train(train_mode)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = model.distillation.predict(data['inputs'], data['data_samples'])
            model(**data, mode='loss')
        assert torch.equal(found.logits, expected)
        assert found.logits.dtype == dtype
        assert not found.logits.requires_grad and not found.logits.is_inference()
    (found.logits * torch.ones_like(found.logits).requires_grad_()).sum().backward()


# --- 4. Same pixels ----------------------------------------------------------------------------


class _Recording(nn.Sequential):
    """Keeps the images it is given."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return super().forward(images)


HALF = dict(mean=[127.5, 120.0, 110.0], std=[64.0, 32.0, 128.0])


@pytest.mark.upstream
@pytest.mark.parametrize('augment', [None, 'Mixup', 'CutMix'])
@pytest.mark.parametrize('student_order', ['rgb', 'bgr'])
@pytest.mark.parametrize('teacher_format', ['equal', 'other', 'other bgr'])
def test_same_pixels(student_order: str, teacher_format: str, augment: str | None) -> None:
    """Undone by hand, teacher's and student's batches are one and the same image batch, mixed or not."""
    images = raw_batch()
    student = resnet(data_preprocessor={**preprocessor(), 'to_rgb': student_order == 'rgb'})
    if augment:
        student['train_cfg'] = dict(augments=dict(type=augment, alpha=1.0))
    net = _Recording()
    other = dict(mean=MEAN, std=STD) if teacher_format == 'equal' else HALF
    teacher_order = 'bgr' if 'bgr' in teacher_format else 'rgb'
    teacher = ModelTeacher(net, net, PixelFormat.of(**other, channel_order=teacher_order), 'Recording')
    pixels = None if student_order == 'rgb' else dict(channel_order='bgr')
    head = dict(type='DistillHead', soft_loss=dict(type='KDLoss'))
    model = Distiller(build(student), teacher, head, pixels=pixels)
    np.random.seed(3)
    data = model.data_preprocessor(copy.deepcopy(images), training=True)
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(**data, mode='loss')

    def undone(batch: Tensor, mean: list[float], std: list[float], order: str) -> Tensor:
        raw = batch.double() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        return raw if order == 'rgb' else raw.flip(1)

    of_student = undone(seen[0], MEAN, STD, student_order)
    torch.testing.assert_close(undone(net.images, **other, order=teacher_order), of_student, rtol=0, atol=1e-4)
    loaded = images['inputs'].double()  # loaders give BGR
    untouched = torch.allclose(of_student, loaded.flip(1), atol=1e-3)
    assert untouched == (augment is None), 'mixing happens before the teacher sees the batch'
    if (teacher_format, student_order) == ('equal', 'rgb'):
        assert net.images is seen[0], 'equal formats pass through untouched'


def test_same_pixels_at_another_size() -> None:
    net = _Recording()
    teacher = ModelTeacher(net, net, PixelFormat.of(MEAN, STD, 'rgb'), 'Recording', input_size=48)
    model = Distiller(build(resnet()), teacher, dict(type='DistillHead', soft_loss=dict(type='KDLoss')))
    data = model.data_preprocessor(raw_batch(), training=True)
    model(**data, mode='loss')
    expected = F.interpolate(data['inputs'], (48, 48), mode='bicubic', antialias=True)
    torch.testing.assert_close(net.images, expected)
    # Images of this size are not resized.
    data = model.data_preprocessor(raw_batch(size=48), training=True)
    model(**data, mode='loss')
    assert torch.equal(net.images, data['inputs'])


# --- 5. Said at build time ---------------------------------------------------------------------


def _fit(student: dict | None = None, teacher: dict | None = None, head: dict | None = None, **options: Any) -> Any:
    """A function of a folder that builds a distilled model with one thing wrong."""

    def make(folder: Path) -> None:
        given = (
            timm_teacher(folder)
            if teacher is None
            else {
                key: str(value).replace('FOLDER', str(folder)) if key == 'checkpoint' else value
                for key, value in teacher.items()
            }
        )
        timm_checkpoint(folder, 'test_resnet', 7)
        build(
            dict(
                type='Distiller',
                student=student or resnet(),
                teacher=given,
                head=head or dict(type='DistillHead', soft_loss=dict(type='KDLoss')),
                **options,
            )
        )

    return make


def _head(**head: Any) -> dict:
    model = resnet()
    model['head'] = {**model['head'], **head}
    return model


_DEIT = vit(
    backbone=dict(
        type='DistilledVisionTransformer',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32),
        img_size=SIZE,
        patch_size=8,
    ),
    head=dict(type='DeiTClsHead', num_classes=CLASSES, in_channels=16),
)
_FNKD = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss'))
_CONST = dict(type='TimmTeacher', model='test_resnet')
_SEVEN = dict(_CONST, checkpoint='FOLDER/test_resnet_7_7.pth')
_UNKNOWN = {**preprocessor(), 'to_rgb': False}
_IN_PIPELINE = dict(num_classes=CLASSES, to_rgb=True)


FAULTS: dict[str, tuple[Callable, list[str]]] = {
    'unknown timm teacher': (
        _fit(teacher=dict(type='TimmTeacher', model='test_resnit', pretrained=True)),
        ['TimmTeacher(test_resnit)', "no model 'test_resnit'", 'Did you mean', 'test_resnet'],
    ),
    'unknown timm student': (
        _fit(student=timm_student('efficientnet_lite00')),
        ['TimmStudent(efficientnet_lite00)', "no model 'efficientnet_lite00'", 'Did you mean', 'efficientnet_lite0'],
    ),
    'teacher without weights': (
        _fit(teacher=_CONST),
        ['TimmTeacher(test_resnet)', 'trained weights', 'checkpoint=FILE', 'pretrained=True'],
    ),
    'teacher with two sets of weights': (
        _fit(teacher=dict(_CONST, checkpoint='x.pth', pretrained=True)),
        ['TimmTeacher(test_resnet)', 'not both'],
    ),
    'student with two sets of weights': (
        _fit(student=timm_student(checkpoint='x.pth', pretrained=True)),
        ['TimmStudent(test_resnet)', 'checkpoint or pretrained, not both'],
    ),
    'pretrained weights of other classes': (
        _fit(teacher=dict(_CONST, pretrained=True, num_classes=CLASSES)),
        ['TimmTeacher(test_resnet)', 'have 1000 classes, not 4', 'would be random', 'checkpoint=FILE'],
    ),
    'class counts differ': (
        _fit(teacher=_SEVEN),
        ['the student has 4 classes', 'TimmTeacher(test_resnet) has 7', "trained on the student's classes"],
    ),
    'checkpoint of another number of classes': (
        _fit(teacher=dict(_SEVEN, num_classes=CLASSES)),
        ['TimmTeacher(test_resnet)', 'test_resnet_7_7.pth', 'fc.weight is (7, 96), not (4, 96)', 'number of classes'],
    ),
    'checkpoint of another architecture': (
        _fit(teacher=dict(_SEVEN, model='test_efficientnet', num_classes=7)),
        [
            'TimmTeacher(test_efficientnet)',
            'test_resnet_7_7.pth',
            'missing (conv_stem.weight',
            'unknown (',
            'architecture',
        ],
    ),
    'no such checkpoint': (
        _fit(teacher=dict(_CONST, checkpoint='FOLDER/nowhere.pth')),
        ['nowhere.pth', 'does not exist'],
    ),
    'unknown argument of timm': (
        _fit(teacher=dict(_SEVEN, depht=3)),
        ['TimmTeacher(test_resnet)', 'timm cannot create it', 'depht'],
    ),
    'FNKD of two heads': (
        _fit(student=_DEIT, head=_FNKD),
        ['the logits of ImageClassifier (DeiTClsHead)', 'a mean or sum of two heads has two', 'use KDLoss'],
    ),
    'FNKD of cosines': (
        _fit(student=cosine(), head=_FNKD),
        ['the logits of ImageClassifier (ArcFaceClsHead)', 'cosines have no feature norm', 'use KDLoss'],
    ),
    'no head': (
        _fit(student={k: v for k, v in resnet().items() if k != 'head'}),
        ['logits cannot be found', 'features without a classifier', 'LinearClsHead'],
    ),
    'multi-label': (
        _fit(student=_head(type='MultiLabelLinearClsHead', loss=dict(type='CrossEntropyLoss', use_sigmoid=True))),
        ['a multi-label classifier (MultiLabelLinearClsHead)', 'single-label'],
    ),
    'multi-task': (
        _fit(
            student=resnet(
                head=dict(
                    type='MultiTaskHead', task_heads=dict(a=dict(type='LinearClsHead', num_classes=4)), in_channels=32
                )
            )
        ),
        ['a multi-task model (MultiTaskHead)', 'single-label'],
    ),
    'student distils already': (
        _fit(student=distilled(resnet(), dict(type='DrawingTeacher'))),
        ['a Distiller already', 'its own student'],
    ),
    'student no model': (
        _fit(student=dict(type='CrossEntropyLoss')),
        ['the student must be a model of MMPretrain', 'CrossEntropyLoss'],
    ),
    'teacher no Teacher': (
        _fit(teacher=resnet()),
        ['the teacher must be one of fnkd_plugin.teachers', 'ImageClassifier', 'MMPretrainTeacher', 'TimmTeacher'],
    ),
    'head no DistillHead': (
        _fit(head=dict(type='LinearClsHead', num_classes=4, in_channels=32)),
        ['the head must be a DistillHead', 'LinearClsHead'],
    ),
    'soft loss no soft loss': (
        _fit(head=dict(type='DistillHead', soft_loss=dict(type='CrossEntropyLoss'))),
        ['DistillHead: soft_loss', 'KDLoss or FNKDLoss', 'CrossEntropyLoss', "student's own head"],
    ),
    'no soft loss': (_fit(head=dict(type='DistillHead', soft_loss=[])), ['DistillHead: soft_loss is empty', 'KDLoss']),
    'negative hard weight': (
        _fit(head=dict(type='DistillHead', soft_loss=dict(type='KDLoss'), hard_weight=-1)),
        ['DistillHead: hard_weight', '>= 0', '-1'],
    ),
    'non-finite warmup': (
        _fit(head=dict(type='DistillHead', soft_loss=dict(type='KDLoss'), warmup=float('inf'))),
        ['DistillHead: warmup', '>= 0', 'inf'],
    ),
    'negative tau': (
        _fit(head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=-1.0))),
        ['FNKDLoss: tau', '> 0', '-1.0'],
    ),
    'norms of a teacher without an affine layer': (
        _fit(
            teacher=dict(type='DrawingTeacherWithoutNorms'),
            head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss')),
        ),
        ['needs feature norms', 'DrawingTeacher', 'use KDLoss'],
    ),
    'channel order unknown': (
        _fit(student=resnet(data_preprocessor=_UNKNOWN)),
        ['TimmTeacher(test_resnet)', "the student's channel order is unknown", 'Distiller(pixels=', 'channel_order'],
    ),
    'normalisation unknown': (
        _fit(student=resnet(data_preprocessor=_IN_PIPELINE)),
        ['TimmTeacher(test_resnet)', "the student's mean and std are unknown", 'Distiller(pixels=', 'mean=', 'std='],
    ),
    'channel order misspelt': (
        _fit(pixels=dict(channel_order='RBG')),
        ['Distiller: pixels', "channel_order must be 'rgb' or 'bgr'", "'RBG'"],
    ),
    'unknown option of pixels': (
        _fit(pixels=dict(order='bgr')),
        ['Distiller: pixels', 'mean, std and channel_order, not order'],
    ),
    'mean without std': (
        _fit(student=resnet(data_preprocessor=_IN_PIPELINE), pixels=dict(mean=MEAN)),
        ['Distiller: pixels', 'mean and std must be given together'],
    ),
    'another number of channels': (
        _fit(pixels=dict(mean=[127.5], std=[1.0], channel_order='rgb')),
        ['TimmTeacher(test_resnet)', "1 channels, the teacher's 3"],
    ),
}


@MODELS.register_module(force=True)
class DrawingTeacherWithoutNorms(DrawingTeacher):
    has_feature_norm = False


@pytest.mark.upstream
@pytest.mark.parametrize('fault', FAULTS)
def test_said_at_build_time(fault: str, tmp_path: Path) -> None:
    """One sentence or two, on one line, that names both sides and the mend."""
    make, parts = FAULTS[fault]
    with pytest.raises(SetupError) as error:
        make(tmp_path)
    text = str(error.value)
    assert [part for part in parts if part not in text] == [], text
    assert '\n' not in text.strip(), text


def test_said_at_build_time_by_the_runner(tmp_path: Path) -> None:
    """MMEngine's builders hand the sentence on."""
    with pytest.raises(SetupError, match='the student has 4 classes'):
        checkpoint = timm_checkpoint(tmp_path, num_classes=7)
        Runner.from_cfg(
            config(
                distilled(resnet(), dict(type='TimmTeacher', model='test_resnet', checkpoint=str(checkpoint))), tmp_path
            )
        )


@pytest.mark.skipif('RegressionHead' not in MODELS.module_dict, reason='this MMPretrain has no regression')
def test_said_at_build_time_of_a_regression(tmp_path: Path) -> None:
    student = _head(type='LinearRegressionHead', loss=dict(type='CrossEntropyLoss'))
    with pytest.raises(SetupError, match=r'a regression model \(LinearRegressionHead\).*single-label'):
        _fit(student=student)(tmp_path)
