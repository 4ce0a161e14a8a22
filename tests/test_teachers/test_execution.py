"""How a teacher's network is run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from fnkd_plugin import Prediction
from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses import KDLoss
from fnkd_plugin.teachers import CallableTeacher, PixelFormat
from fnkd_plugin.teachers.execution import Execution, ExecutionMode
from fnkd_plugin.teachers.teacher import ModelTeacher
from tests.helpers import CLASSES, SIZE, build, distilled, resnet, timm_teacher

pytestmark = pytest.mark.upstream
RGB = PixelFormat.of([127.5] * 3, [127.5] * 3, 'rgb')
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class _Net(nn.Module):
    """A convolution and a classifier; ``viewing`` needs contiguous memory."""

    def __init__(self, viewing: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 5)
        self.viewing = viewing
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        self.seen.append((x.dtype, images.is_contiguous(memory_format=torch.channels_last)))
        return self.fc(x.view(len(x), -1) if self.viewing else x.flatten(1))


def _teacher(execution: Any = None, viewing: bool = False) -> ModelTeacher:
    net = _Net(viewing)
    teacher = ModelTeacher(net, net, RGB, 'Net', 8, execution=execution)
    teacher.prepare(RGB)
    net.seen.clear()
    return teacher


EXACT = _teacher().predict(IMAGES)


def test_by_default_it_is_run_as_its_own_framework_runs_it() -> None:
    assert torch.equal(EXACT.logits, _Net()(IMAGES))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('of_student', [torch.float32, torch.bfloat16])
def test_a_stated_dtype_does_not_depend_on_the_students(dtype: str, of_student: torch.dtype) -> None:
    teacher = _teacher(dict(dtype=dtype))
    with torch.autocast('cpu', of_student, enabled=of_student != torch.float32):
        prediction = teacher.predict(IMAGES)
    assert teacher.model.seen == [(getattr(torch, dtype), False)] and prediction.logits.dtype == getattr(torch, dtype)
    assert prediction.feature_norm is not None and prediction.feature_norm.dtype == torch.float32
    torch.testing.assert_close(prediction.logits.float(), EXACT.logits, rtol=0.02, atol=0.02)
    torch.testing.assert_close(prediction.feature_norm, EXACT.feature_norm, rtol=0.02, atol=0.02)
    assert all(p.dtype == torch.float32 for p in teacher.model.parameters())


# The student's autocast


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_under_autocast_it_runs_in_the_students_dtype(dtype: torch.dtype) -> None:
    """As the network itself would; norms stay fp32, and what follows without autocast is exact again."""
    teacher = _teacher()
    with torch.autocast('cpu', dtype):
        prediction = teacher.predict(IMAGES)
        with torch.no_grad():
            expected = _Net()(IMAGES)
    assert teacher.model.seen == [(dtype, False)] and torch.equal(prediction.logits, expected)
    assert prediction.feature_norm is not None and prediction.feature_norm.dtype == torch.float32
    assert not torch.equal(prediction.logits.float(), EXACT.logits)
    for a, b in zip(teacher.predict(IMAGES), EXACT, strict=True):
        assert torch.equal(a, b)


def test_under_autocast_the_images_are_converted_in_fp32() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    teacher = ModelTeacher(net, net, RGB, 'Net', 8)
    teacher.prepare(PixelFormat.of([100.0] * 3, [50.0] * 3, 'bgr'))
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 16, 16)
    teacher.predict(images)
    with torch.autocast('cpu', torch.bfloat16):
        teacher.predict(images)
    assert torch.equal(*seen)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('stated', [None, False, True])
def test_the_memory_order_is_the_students_under_autocast(autocast: bool, stated: bool | None) -> None:
    """Seen in its batch; without autocast fp32 runs stay exact."""
    teacher = _teacher({} if stated is None else dict(channels_last=stated))
    for reordered in (True, False):
        images = IMAGES.contiguous(memory_format=torch.channels_last) if reordered else IMAGES
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            teacher.predict(images)
        expected = (autocast and reordered) if stated is None else stated
        assert teacher.model.seen.pop()[1] == expected
        assert teacher.model.conv.weight.is_contiguous() != expected


def test_a_distillers_teacher_and_losses_under_autocast(tmp_path: Path) -> None:
    """The teacher runs in bf16; soft losses and norms are fp32."""
    model = build(distilled(resnet(), timm_teacher(tmp_path), dict(type='FNKDLoss')))
    seen: list[torch.dtype] = []
    net = model.distillation.teacher.model
    net.conv1[0].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    samples = [DataSample().set_gt_label(k % CLASSES) for k in range(4)]
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(torch.randn(4, 3, SIZE, SIZE), samples, mode='loss')
    assert seen == [torch.bfloat16]
    assert losses['loss_soft'].dtype == model.distillation.step.teacher.feature_norm.dtype == torch.float32


def test_following_the_student_does_not_break_a_compiled_graph() -> None:
    torch._dynamo.reset()
    teacher = _teacher()
    teacher.model.forward = lambda images: teacher.model.fc(teacher.model.conv(images).flatten(1))
    step = torch.compile(lambda images: teacher.predict(images).logits, backend='eager', fullgraph=True)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(step(IMAGES), teacher.predict(IMAGES).logits)
    assert torch.equal(step(IMAGES), EXACT.logits)


# Weights that are not fp32


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('autocast', [False, True])
def test_a_cast_network_runs_in_its_own_dtype(dtype: torch.dtype, autocast: bool) -> None:
    net = _Net().to(dtype)
    teacher = ModelTeacher(net, net, RGB, 'Net', 8)
    teacher.prepare(PixelFormat.of([100.0] * 3, [50.0] * 3, 'rgb'))
    exact = _teacher()
    exact.prepare(PixelFormat.of([100.0] * 3, [50.0] * 3, 'rgb'))
    net.seen.clear()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        prediction = teacher.predict(IMAGES)
    assert net.seen == [(dtype, False)] and net.fc.weight.dtype == prediction.logits.dtype == dtype
    assert str(teacher._run) == str(dtype).removeprefix('torch.')
    assert KDLoss()(Prediction(EXACT.logits), prediction).isfinite()
    torch.testing.assert_close(prediction.logits.float(), exact.predict(IMAGES).logits, rtol=0.02, atol=0.02)
    torch.testing.assert_close(prediction.feature_norm.float(), exact.predict(IMAGES).feature_norm, rtol=0.02, atol=0.1)


@pytest.mark.parametrize('execution', ['auto', dict(dtype='bfloat16'), dict(dtype='float32')])
def test_dtype_of_a_half_precision_network_raises(execution: Any) -> None:
    net = _Net().half()
    with pytest.raises(SetupError, match=r'Net: execution: its weights are torch\.float16.* give no dtype'):
        ModelTeacher(net, net, RGB, 'Net', 8, execution=execution)


def test_channels_last_changes_rounding_only() -> None:
    teacher = _teacher(dict(channels_last=True))
    prediction = teacher.predict(IMAGES)
    assert teacher.model.seen == [(torch.float32, True)]
    assert teacher.model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(prediction.logits, EXACT.logits)


def test_compiled_it_predicts_the_same_and_is_compiled_once() -> None:
    torch._dynamo.reset()
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    teacher = _teacher(dict(compile=dict(backend=backend, fullgraph=True)))
    teacher.model.forward = lambda images: teacher.model.fc(teacher.model.conv(images).flatten(1))
    for _ in range(3):
        prediction = teacher.predict(IMAGES)
        torch.testing.assert_close(tuple(prediction), tuple(EXACT))
    assert len(compiled) == 1


# 'auto'


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[ExecutionMode, float]:
    """Sets the seconds of each mode; it is still run once."""
    seconds: dict[ExecutionMode, float] = {}

    def timed(self: Execution, mode: ExecutionMode, images: Tensor) -> float:
        self._run(images, mode)
        return seconds[mode]

    monkeypatch.setattr(Execution, '_timed', timed)
    return seconds


MODES = [ExecutionMode(dtype, last) for dtype in (torch.float32, torch.bfloat16) for last in (False, True)]


@pytest.mark.parametrize('fastest', MODES)
def test_auto_keeps_the_fastest(fastest: ExecutionMode, clock: dict[ExecutionMode, float]) -> None:
    clock.update({mode: 0.2 - 0.1 * (mode == fastest) for mode in MODES})
    teacher = _teacher('auto')
    prediction = teacher.predict(IMAGES)
    teacher.model.seen.clear()
    torch.testing.assert_close(teacher.predict(IMAGES), prediction, rtol=0, atol=0)
    assert teacher.model.seen == [fastest]
    torch.testing.assert_close(prediction.logits.float(), EXACT.logits, rtol=0.02, atol=0.02)


def test_auto_passes_over_modes_that_fail(clock: dict[ExecutionMode, float]) -> None:
    clock.update({mode: 0.1 if mode[1] else 0.2 for mode in MODES})
    teacher = _teacher('auto', viewing=True)
    assert torch.equal(teacher.predict(IMAGES).logits, EXACT.logits)


def test_auto_stops_a_slow_mode_after_one_image(clock: dict[ExecutionMode, float]) -> None:
    """bf16 on a CPU without instructions for it may take many times as long."""
    clock.update({mode: 0.2 if mode.dtype == torch.float32 else 30.0 for mode in MODES})
    teacher = _teacher('auto')
    teacher.predict(IMAGES)
    assert sum(dtype == torch.bfloat16 for dtype, _ in teacher.model.seen) == 2


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures('_deterministic')
def test_auto_leaves_nothing_to_timing_under_deterministic_algorithms() -> None:
    teacher = _teacher('auto')
    assert torch.equal(teacher.predict(IMAGES).logits, EXACT.logits)
    assert teacher.model.seen == [(torch.float32, False)]


@pytest.mark.parametrize(
    ('execution', 'message'),
    [
        ('fast', r"CallableTeacher\(_Net\): execution is 'auto' or a dict of dtype in .* compile in .* is 'fast'"),
        (dict(layout='x'), 'execution is .* but is {.layout.'),
        (dict(dtype='fp8'), r"dtype in \('float32', 'bfloat16', 'float16'\), .* but is {'dtype': 'fp8'}"),
        (dict(channels_last='yes'), r"channels_last in \(True, False\), .* but is .*'yes'"),
        (dict(compile='inductor'), r"compile in \(True, False\), but is .*'inductor'"),
    ],
)
def test_unknown_execution_options_raise(execution: Any, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        CallableTeacher(_Net(), input_size=8, execution=execution)
