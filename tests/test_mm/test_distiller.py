"""The distilled model, which is the student."""

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from mmpretrain import get_model
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import nn
from torch.ao.quantization import quantize_dynamic

from fnkd_plugin import Distiller, DistillHead
from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher
from tests.helpers import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    build,
    config,
    cosine,
    distilled,
    preprocessor,
    raw_batch,
    resnet,
    timm_student,
    timm_teacher,
    train,
    vit,
)

STUDENTS = {'resnet': resnet, 'vit': vit, 'timm': timm_student}
FNKD = dict(type='FNKDLoss', tau=1.0)
STATISTICS = {'agreement', 'teacher_acc', 'teacher_norm', 'student_norm', 'hard_ce'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('teachers')


def _step(model: Any, lr: float = 0.1, seed: int = 0) -> dict:
    """One ``train_step``; returns what it logs."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    return model.train_step(raw_batch(seed=seed), OptimWrapper(optimizer))


# It is the student


@pytest.mark.upstream
@pytest.mark.parametrize('name', STUDENTS)
def test_every_other_mode_is_the_students(name: str, folder: Path) -> None:
    plain = build(STUDENTS[name]()).eval()
    model = build(distilled(STUDENTS[name](), timm_teacher(folder))).eval()
    data = model.data_preprocessor(raw_batch())
    images, samples = data['inputs'], data['data_samples']
    with torch.no_grad():
        assert torch.equal(model(images), plain(images))
        assert torch.equal(model(images, mode='tensor'), plain(images, mode='tensor'))
        assert str(model.extract_feat(images)) == str(plain.extract_feat(images))
        for mine, its in (
            (model(images, samples, mode='predict'), plain(images, samples, mode='predict')),
            (model.predict(images), plain.predict(images)),
            (model.val_step(raw_batch()), plain.val_step(raw_batch())),
            (model.test_step(raw_batch()), plain.test_step(raw_batch())),
        ):
            assert all(torch.equal(a.pred_score, b.pred_score) for a, b in zip(mine, its, strict=True))


@pytest.mark.upstream
def test_the_instance_is_an_image_classifier(folder: Path) -> None:
    model = build(distilled(resnet(), timm_teacher(folder)))
    plain = build(resnet())
    assert isinstance(model, ImageClassifier) and isinstance(model, Distiller)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert type(model.head).__name__ == 'LinearClsHead'
    assert model.with_head and model.with_neck
    own = set(vars(Distiller)) - set(vars(object)) - {'__annotations__', '_distillation'}
    assert {name for name in own if not name.startswith('_')} == {'forward', 'distillation', 'student'}


@pytest.mark.upstream
def test_the_class_is_made_once(folder: Path) -> None:
    a, b = (build(distilled(resnet(), timm_teacher(folder))) for _ in range(2))
    assert type(a) is type(b) and type(a) is not type(build(resnet()))


@pytest.mark.upstream
def test_get_model_builds_a_distilled_config(folder: Path, tmp_path: Path) -> None:
    cfg = config(distilled(resnet(), timm_teacher(folder)), tmp_path)
    plain = build(resnet())
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    model = get_model(cfg, pretrained=str(tmp_path / 'plain.pth'), device='cpu').eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    assert isinstance(model, ImageClassifier)
    assert torch.equal(model(images), plain.eval()(images))


@pytest.mark.upstream
@pytest.mark.parametrize('name', STUDENTS)
@pytest.mark.parametrize('how', ['pickle', 'deepcopy'])
def test_copies_distil_on_their_own_weights(name: str, how: str, folder: Path) -> None:
    model = build(distilled(STUDENTS[name](), timm_teacher(folder), FNKD))
    twin = copy.deepcopy(model) if how == 'deepcopy' else pickle.loads(pickle.dumps(model))
    assert type(twin) is type(model)
    assert (twin._distillation is model._distillation) == (how == 'deepcopy'), 'EMA copies share the teacher'
    weights = copy.deepcopy(model.state_dict())
    first = _step(twin)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    second = _step(model)
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    model = None  # the twin needs nothing of the first
    assert torch.isfinite(_step(twin)['loss_soft'])


def test_a_common_data_preprocessor_goes_to_the_student(folder: Path, tmp_path: Path) -> None:
    """MMEngine puts a config's top-level one on the outer model dict."""
    student = resnet()
    student.pop('data_preprocessor')
    runner = train(distilled(student, timm_teacher(folder)), tmp_path, data_preprocessor=preprocessor())
    assert runner.model.data_preprocessor.mean.flatten().tolist() == pytest.approx(MEAN)


@pytest.mark.upstream
def test_built_students_teachers_and_heads_are_taken(folder: Path) -> None:
    student = build(resnet())
    teacher = build(distilled(resnet(), timm_teacher(folder))).distillation.teacher
    model = Distiller(student, teacher, DistillHead(FNKD))
    assert model is student
    assert torch.isfinite(_step(model)['loss_soft'])


# What it adds


@pytest.mark.upstream
@pytest.mark.parametrize('name', STUDENTS)
@pytest.mark.parametrize('soft', ['kd', 'fnkd', 'both'])
def test_log(name: str, soft: str, folder: Path) -> None:
    """loss_hard, loss_soft, the statistics, and a total that is the sum of the losses."""
    losses = dict(kd=dict(type='KDLoss'), fnkd=FNKD, both=[dict(type='KDLoss'), FNKD])[soft]
    model = build(distilled(STUDENTS[name](), timm_teacher(folder), losses, hard_weight=0.5))
    log = _step(model)
    soft_names = ['loss_soft_kd', 'loss_soft_fnkd'] if soft == 'both' else ['loss_soft']
    assert set(log) == {'loss', 'loss_hard', *soft_names}
    statistics = model.distillation.step.statistics()
    assert set(statistics) == STATISTICS
    tau = {'kd': {}, 'fnkd': {'tau': 1.0}, 'both': {'tau_fnkd': 1.0}}[soft]
    assert model.distillation.head.log_vars() == tau
    total = sum(value for name, value in log.items() if 'loss' in name and name != 'loss')
    torch.testing.assert_close(log['loss'], total)
    plain = _step(build(STUDENTS[name]()))
    torch.testing.assert_close(log['loss_hard'], 0.5 * plain['loss'])
    assert statistics['hard_ce'] == pytest.approx(plain['loss'].item(), rel=1e-6)


@pytest.mark.upstream
def test_the_soft_loss_by_hand(folder: Path) -> None:
    """The whole step, recomputed from weights: features, logits and norms of both networks."""
    model = build(distilled(resnet(), timm_teacher(folder), dict(type='FNKDLoss', tau=0.5, loss_weight=2.0)))
    data = model.data_preprocessor(raw_batch(), training=True)
    found = model(**data, mode='loss')
    images = data['inputs']
    teacher = model.distillation.teacher.model
    raw = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    with torch.no_grad():
        feature = teacher.forward_head(teacher.forward_features((raw / 255 - 0.5) / 0.5), pre_logits=True)
        s = (0.5 / feature.norm(dim=1, keepdim=True)).clamp(max=1)
        q = F.linear(feature * s, teacher.fc.weight, teacher.fc.bias).softmax(1)
    feature_s = model.extract_feat(images)[-1]
    s = (0.5 / feature_s.norm(dim=1, keepdim=True)).clamp(max=1)
    log_p = F.linear(feature_s * s, model.head.fc.weight, model.head.fc.bias).log_softmax(1)
    expected = 2 * -(q * log_p).sum(1).mean()
    torch.testing.assert_close(found['loss_soft'], expected, rtol=1e-4, atol=1e-5)
    statistics = model.distillation.step.statistics()
    assert statistics['teacher_norm'] == pytest.approx(feature.norm(dim=1).mean().item(), rel=1e-4)
    assert statistics['student_norm'] == pytest.approx(feature_s.norm(dim=1).mean().item(), rel=1e-5)
    found['loss_soft'].backward()
    mine = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.upstream
def test_papers_kd_is_the_mixed_target(folder: Path) -> None:
    """Eq. 6 and 7 through the whole model: hard_weight 1 - a, KD of weight a at T = 1."""
    soft = dict(type='KDLoss', temperature=1.0, loss_weight=0.3)
    model = build(distilled(resnet(), timm_teacher(folder), soft, hard_weight=0.7))
    data = model.data_preprocessor(raw_batch(), training=True)
    losses = model(**data, mode='loss')
    prediction = model.distillation.predict(data['inputs'], data['data_samples'])
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    q_t = 0.7 * F.one_hot(labels, CLASSES) + 0.3 * prediction.logits.softmax(1)
    logits = model(data['inputs'])
    torch.testing.assert_close(losses['loss_hard'] + losses['loss_soft'], F.cross_entropy(logits, q_t))


@pytest.mark.upstream
def test_images_that_the_teacher_gets_wrong_can_be_left_out(folder: Path) -> None:
    """By the labels of the batch; all count by default."""
    soft = dict(type='KDLoss', temperature=1.0)
    for weight, options in ((0.0, dict(wrong_teacher_weight=0.0)), (1.0, {})):
        model = build(distilled(resnet(), timm_teacher(folder), soft, **options))
        data = model.data_preprocessor(raw_batch(), training=True)
        losses = model(**data, mode='loss')
        teacher = model.distillation.predict(data['inputs'], data['data_samples']).logits
        right = teacher.argmax(1) == torch.cat([sample.gt_label for sample in data['data_samples']])
        assert right.any() and not right.all()
        each = -(teacher.softmax(1) * model(data['inputs']).log_softmax(1)).sum(1)
        torch.testing.assert_close(losses['loss_soft'], torch.where(right, each, weight * each).mean())


@pytest.mark.upstream
def test_a_student_learns_its_teachers_predictions(folder: Path) -> None:
    """Without hard loss the agreement on a batch grows to 1, whatever the labels are."""
    model = build(
        distilled(resnet(width=8), timm_teacher(folder), dict(type='KDLoss', temperature=2.0), hard_weight=0.0)
    )
    teacher = model.distillation.teacher
    optim = OptimWrapper(torch.optim.Adam(model.parameters(), 0.01))
    steps = []
    for _ in range(26):
        last = model.train_step(raw_batch(), optim)
        steps.append({**last, **model.distillation.step.statistics()})
    first, last = steps[0], steps[-1]
    assert last['loss_soft'] < first['loss_soft']
    assert last['agreement'] == 1
    assert last['teacher_acc'] == first['teacher_acc'], f'{teacher.name} does not move'
    assert last['loss_hard'] == 0


@pytest.mark.upstream
@pytest.mark.parametrize('name', STUDENTS)
def test_bf16_autocast_of_a_whole_step(name: str, folder: Path) -> None:
    """The soft loss and the norms are fp32 and close to the exact ones; without autocast the teacher is exact."""
    found = []
    for enabled in (False, True):
        model = build(distilled(STUDENTS[name](), timm_teacher(folder), [dict(type='KDLoss'), FNKD]))
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        data = model.data_preprocessor(raw_batch(), training=True)
        torch.manual_seed(0)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            losses = model(**data, mode='loss')
        assert losses['loss_soft_kd'].dtype == losses['loss_soft_fnkd'].dtype == torch.float32
        assert model.distillation.step.student.feature_norm.dtype == torch.float32
        model.parse_losses(losses)[0].backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        found.append({**losses, 'teacher_norm': model.distillation.step.teacher.feature_norm})
    assert found[1]['teacher_norm'].dtype == torch.float32
    for key in ('teacher_norm', 'loss_soft_kd', 'loss_soft_fnkd', 'loss_hard'):
        torch.testing.assert_close(found[1][key], found[0][key].float(), rtol=0.05, atol=0.05, check_dtype=False)


@pytest.mark.upstream
@pytest.mark.parametrize('student', [resnet, timm_student])
def test_gradient_checkpointing_gives_the_same_step(student: Any, folder: Path) -> None:
    steps = []
    for with_cp in (False, True):
        cfg = student(with_cp=True) if with_cp and student is timm_student else student()
        if with_cp and student is resnet:
            cfg['backbone']['with_cp'] = True
        model = build(distilled(cfg, timm_teacher(folder), FNKD))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            log = _step(model)
        steps.append((log, model))
    assert {k: v.item() for k, v in steps[0][0].items()} == {k: v.item() for k, v in steps[1][0].items()}
    for a, b in zip(steps[0][1].parameters(), steps[1][1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def _strict_compiler() -> Iterator[None]:
    """Compiling anew without end is an error; nothing compiled before is known."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def _tiny_pair(soft_loss: Any) -> Any:
    """LeNet-5 taught by a linear model: little to compile."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES))
    teacher = ModelTeacher(net, net, PixelFormat.of([127.0], [64.0]), 'Linear')
    student = dict(
        type='ImageClassifier',
        backbone=dict(type='LeNet5', num_classes=CLASSES),
        head=dict(type='ClsHead'),
        data_preprocessor=dict(mean=[127.0], std=[64.0], num_classes=CLASSES),
    )
    return Distiller(build(student), teacher, dict(type='DistillHead', soft_loss=soft_loss))


def _compile_as_mmengine(model: Any) -> None:
    model.train_step = torch.compile(model.train_step, backend='eager')


@pytest.mark.usefixtures('_strict_compiler')
@pytest.mark.parametrize(
    'compile_it',
    [
        _compile_as_mmengine,
        lambda model: model.compile(backend='eager', fullgraph=True),
        lambda model: model.backbone.compile(backend='eager', fullgraph=True),
    ],
    ids=['train_step', 'student', 'backbone'],
)
def test_compiled_training(compile_it: Any) -> None:
    """Eager's numbers, compiled a few times at most: once where tau is known, twice where it settles on the way."""
    logs = []
    for compiled in (False, True):
        model = _tiny_pair([dict(type='KDLoss'), dict(type='FNKDLoss')])
        fnkd = model.distillation.head.soft_losses[1]
        known = {'batches': 16 if compile_it is _compile_as_mmengine else 20}  # it is still to settle, or has
        fnkd.set_extra_state(dict(sum=16.0, count=16.0, **known))
        fnkd._balance_checked = True
        if compiled:
            compile_it(model)
        optim = OptimWrapper(torch.optim.SGD(model.parameters(), 0.01))
        batches = (raw_batch(seed=i) for i in range(12))
        logs.append([model.train_step({**batch, 'inputs': batch['inputs'][:, :1]}, optim) for batch in batches])
    for eager, other in zip(*logs, strict=True):
        assert set(eager) == set(other)
        for key in eager:
            torch.testing.assert_close(other[key], eager[key], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures('_strict_compiler')
@pytest.mark.parametrize(
    ('student', 'options'), [('test_resnet', {}), ('test_vit', dict(img_size=SIZE)), ('test_convnext', {})]
)
def test_student_and_teacher_compile_to_one_graph(student: str, options: dict, folder: Path) -> None:
    """In the steady state, once tau is known."""
    model = build(
        distilled(timm_student(student, **options), timm_teacher(folder, student, **options), dict(type='FNKDLoss'))
    )
    model.train()
    data = model.data_preprocessor(raw_batch(), True)
    for _ in range(20):
        model.distillation.head.soft_losses[0].observe(model.distillation.predict(**data))
    compiled = torch.compile(model.forward, backend='eager', fullgraph=True)
    compiled(**data, mode='loss')
    first = model.distillation.step
    model.distillation.teacher.model.get_classifier().bias.data[0] = float('nan')
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(**data, mode='loss')
    assert first.teacher_is_finite() and not model.distillation.step.teacher_is_finite()


class _Mixing(ImageClassifier):
    """Calls its head twice, and trains by its own step that calls ``forward(mode='loss')``."""

    def train_step(self, data: Any, optim_wrapper: Any) -> dict:
        data = self.data_preprocessor(data, True)
        losses, log = self.parse_losses(self(**data, mode='loss'))
        optim_wrapper.update_params(losses)
        return log


def test_a_train_step_that_calls_forward_is_taken(folder: Path) -> None:
    student = build(resnet())
    student.__class__ = _Mixing
    model = Distiller(student, timm_teacher(folder), dict(type='DistillHead', soft_loss=dict(type='KDLoss')))
    assert 'loss_soft' in _step(model)


class _Functional(ImageClassifier):
    def loss(self, inputs: torch.Tensor, data_samples: Any, **_: Any) -> dict:
        z = F.linear(self.extract_feat(inputs)[-1], self.head.fc.weight, self.head.fc.bias)
        return dict(loss=z.square().mean())


def test_a_loss_that_bypasses_the_layer_is_refused(folder: Path) -> None:
    student = build(resnet())
    student.__class__ = _Functional
    model = Distiller(student, timm_teacher(folder), dict(type='DistillHead', soft_loss=dict(type='KDLoss')))
    with pytest.raises(RuntimeError, match='the loss of _Functional does not call the module'):
        _step(model)


@pytest.mark.upstream
def test_an_error_in_the_students_loss_leaves_no_reading_behind(folder: Path) -> None:
    model = build(distilled(resnet(), timm_teacher(folder)))
    data = model.data_preprocessor(raw_batch(), training=True)
    with pytest.raises(TypeError):
        model(data['inputs'], None, mode='loss')
    model(data['inputs'])
    assert model.distillation.reader.take() is None
    assert torch.isfinite(_step(model)['loss_soft'])


@pytest.mark.upstream
def test_teachers_without_norms_teach_by_kd() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Linear(3, CLASSES) for _ in range(2))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (self.a(images.mean((2, 3))) + self.b(images.amax((2, 3)))) / 2

    net = Two()
    teacher = ModelTeacher(net, net, PixelFormat.of(MEAN, STD, 'rgb'), 'Two')
    model = Distiller(build(resnet()), teacher, dict(type='DistillHead', soft_loss=dict(type='KDLoss')))
    log = _step(model)
    statistics = model.distillation.step.statistics()
    assert 'loss_soft' in log and 'teacher_norm' not in statistics and 'student_norm' in statistics


# Students whose logits come from no affine layer


def _two_heads() -> dict:
    arch = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
    return vit(
        backbone=dict(type='DistilledVisionTransformer', arch=arch, img_size=SIZE, patch_size=8),
        head=dict(type='DeiTClsHead', num_classes=CLASSES, in_channels=16),
    )


def _subcenters() -> dict:
    model = cosine()
    model['head']['num_subcenters'] = 3
    return model


WITHOUT_NORM = {
    'hypersphere embedding': cosine,
    'scale 1': lambda: cosine(head={**cosine()['head'], 'scale': 1.0}),
    'sub-centers': _subcenters,
    'ArcFace': lambda: cosine(margins=0.5),
    'two heads': _two_heads,
}


@pytest.mark.upstream
@pytest.mark.filterwarnings('ignore:MMPretrain cannot train the distilled version DeiT')
@pytest.mark.parametrize('name', WITHOUT_NORM)
def test_kd_of_logits_without_an_affine_layer(name: str, folder: Path) -> None:
    """The student learns by the logits that it predicts with, whatever margin its hard loss has."""
    soft = dict(type='KDLoss', temperature=2.0, t_squared=False)
    model = build(distilled(WITHOUT_NORM[name](), timm_teacher(folder), soft)).eval()
    data = model.data_preprocessor(raw_batch(), training=True)
    found = model(**data, mode='loss')
    teacher = model.distillation.predict(data['inputs'], data['data_samples'])
    logits = model(data['inputs'])
    expected = -((teacher.logits / 2).softmax(1) * (logits / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found['loss_soft'], expected)
    assert set(found) == {'loss_hard', 'loss_soft'}
    statistics = model.distillation.step.statistics()
    assert set(statistics) == STATISTICS - {'student_norm'}
    assert statistics['agreement'] == (logits.argmax(1) == teacher.logits.argmax(1)).float().mean()
    plain = build(WITHOUT_NORM[name]()).eval()
    assert torch.equal(found['loss_hard'], plain(**data, mode='loss')['loss'])
    found['loss_soft'].backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.head.parameters())


@pytest.mark.upstream
def test_cosines_are_the_scale_times_normalised_features_and_weights(folder: Path) -> None:
    """Hypersphere embedding by hand, and that its margin-free loss is its prediction's, to rounding."""
    model = build(distilled(cosine(), timm_teacher(folder))).eval()
    data = model.data_preprocessor(raw_batch(), training=True)
    feature, weight = model.extract_feat(data['inputs'])[-1], model.head.norm_product.weight
    logits = 8.0 * F.normalize(feature) @ F.normalize(weight).T
    torch.testing.assert_close(model(data['inputs']), logits)
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    hard = model(**data, mode='loss')['loss_hard']
    torch.testing.assert_close(hard, F.cross_entropy(logits, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.upstream
@pytest.mark.parametrize('augment', ['Mixup', 'CutMix'])
def test_cosines_learn_from_mixed_images(augment: str, folder: Path) -> None:
    """Without a margin the hard loss is that of the mixed label; the soft one needs none."""
    student = cosine(train_cfg=dict(augments=dict(type=augment, alpha=1.0)))
    model = build(distilled(student, timm_teacher(folder))).eval()
    data = model.data_preprocessor(raw_batch(), training=True)
    mixed = torch.stack([sample.gt_score for sample in data['data_samples']])
    assert ((mixed > 0) & (mixed < 1)).any()
    found = model(**data, mode='loss')
    expected = F.cross_entropy(model(data['inputs']), mixed)
    torch.testing.assert_close(found['loss_hard'], expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(found['loss_soft'])


@pytest.mark.upstream
def test_a_refused_cosine_student_is_left_without_a_hook(folder: Path) -> None:
    student = build(cosine())
    with pytest.raises(ValueError, match='cosines have no feature norm'):
        Distiller(student, timm_teacher(folder), DistillHead(FNKD))
    assert type(student) is ImageClassifier
    assert not any(module._forward_hooks for module in student.modules())


def test_a_refused_pair_leaves_a_built_student_as_it_was(folder: Path) -> None:
    student = build(resnet())
    with pytest.raises(ValueError, match='the teacher must be one of'):
        Distiller(student, teacher='nobody', head=DistillHead(dict(type='KDLoss')))
    assert type(student) is ImageClassifier
    assert isinstance(
        Distiller(student, timm_teacher(folder), dict(type='DistillHead', soft_loss=dict(type='KDLoss'))), Distiller
    )


# Images without labels, the bare student, degenerate sizes


@pytest.mark.parametrize('student', [resnet, timm_student, cosine])
def test_images_without_labels_teach_where_the_hard_loss_has_no_weight(student: Any, folder: Path) -> None:
    model = build(distilled(student(), timm_teacher(folder), hard_weight=0.0))
    data = model.data_preprocessor(raw_batch(), training=True)
    expected = model(**data, mode='loss')['loss_soft']
    found = model(data['inputs'], [DataSample() for _ in range(4)], mode='loss')
    assert list(found) == ['loss_soft'] and torch.equal(found['loss_soft'], expected)
    assert 'teacher_acc' not in model.distillation.step.statistics()
    with pytest.raises(ValueError, match='no labels'):
        build(distilled(student(), timm_teacher(folder)))(data['inputs'], [DataSample()] * 4, mode='loss')


@pytest.mark.filterwarnings('ignore')
def test_the_bare_student_can_be_scripted_and_quantised(folder: Path) -> None:
    model = build(distilled(timm_student(), timm_teacher(folder))).eval()
    plain = model.student()
    assert type(plain) is type(build(timm_student())) and not hasattr(plain, 'distillation')
    assert not any(module._forward_hooks for module in plain.modules())
    images = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(torch.jit.script(plain.model)(images), model(images))
    assert quantize_dynamic(plain, {nn.Linear})(images).shape == (2, CLASSES)
    assert torch.isfinite(_step(model.train())['loss_soft']), 'it still distils'


def test_one_class_is_refused(folder: Path) -> None:
    with pytest.raises(SetupError, match='the student has 1 class'):
        build(distilled(resnet(num_classes=1), timm_teacher(folder)))
