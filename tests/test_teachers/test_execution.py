"""How a teacher's network is run, whatever the student's way."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers import CallableTeacher, PixelFormat
from fnkd_plugin.teachers.execution import Execution
from fnkd_plugin.teachers.teacher import ModelTeacher

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
    teacher = ModelTeacher(net, net, RGB, 'Net', 8, execution)
    teacher.prepare(RGB)
    net.seen.clear()
    return teacher


EXACT = _teacher().predict(IMAGES)


def test_by_default_it_is_run_as_its_own_framework_runs_it() -> None:
    assert torch.equal(EXACT.logits, _Net()(IMAGES))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('of_student', [torch.float32, torch.bfloat16])
def test_its_dtype_is_its_own(dtype: str, of_student: torch.dtype) -> None:
    for execution, expected in (({}, torch.float32), (dict(dtype=dtype), getattr(torch, dtype))):
        teacher = _teacher(execution)
        with torch.autocast('cpu', of_student, enabled=of_student != torch.float32):
            prediction = teacher.predict(IMAGES)
        assert teacher.model.seen == [(expected, False)] and prediction.logits.dtype == expected
        assert prediction.feature_norm is not None and prediction.feature_norm.dtype == torch.float32
        torch.testing.assert_close(prediction.logits.float(), EXACT.logits, rtol=0.02, atol=0.02)
        torch.testing.assert_close(prediction.feature_norm, EXACT.feature_norm, rtol=0.02, atol=0.02)
        assert all(p.dtype == torch.float32 for p in teacher.model.parameters())


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
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[Any, float]:
    """What each way takes, in seconds; it is run once all the same."""
    seconds: dict[Any, float] = {}

    def timed(self: Execution, images: Tensor) -> float:
        self._run(images)
        return seconds[self.way]

    monkeypatch.setattr(Execution, '_timed', timed)
    return seconds


WAYS = [('float32', False), ('float32', True), ('bfloat16', False), ('bfloat16', True)]


@pytest.mark.parametrize('fastest', WAYS)
def test_auto_keeps_the_fastest(fastest: Any, clock: dict[Any, float]) -> None:
    clock.update({way: 0.2 - 0.1 * (way == fastest) for way in WAYS})
    teacher = _teacher('auto')
    prediction = teacher.predict(IMAGES)
    teacher.model.seen.clear()
    torch.testing.assert_close(teacher.predict(IMAGES), prediction, rtol=0, atol=0)
    assert teacher.model.seen == [(getattr(torch, fastest[0]), fastest[1])]
    torch.testing.assert_close(prediction.logits.float(), EXACT.logits, rtol=0.02, atol=0.02)


def test_auto_passes_over_ways_in_which_it_cannot_be_run(clock: dict[Any, float]) -> None:
    clock.update({way: 0.1 if way[1] else 0.2 for way in WAYS})
    teacher = _teacher('auto', viewing=True)
    assert torch.equal(teacher.predict(IMAGES).logits, EXACT.logits)


def test_auto_gives_a_hopeless_way_one_image(clock: dict[Any, float]) -> None:
    """bf16 on a CPU without instructions for it may take many times as long."""
    clock.update({way: 0.2 if way[0] == 'float32' else 30.0 for way in WAYS})
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
    ('execution', 'said'),
    [
        ('fast', r"CallableTeacher\(_Net\): execution is 'auto' or a dict of dtype, .* compile, but is 'fast'"),
        (dict(layout='x'), 'execution is .* but is {.layout.'),
        (dict(dtype='fp8'), r"execution.dtype is one of \('float32', 'bfloat16', 'float16'\), but is 'fp8'"),
        (dict(channels_last='yes'), "execution.channels_last is one of .* but is 'yes'"),
        (dict(compile='inductor'), "execution.compile is one of .* but is 'inductor'"),
    ],
)
def test_what_is_no_way_is_said_when_it_is_built(execution: Any, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        CallableTeacher(_Net(), input_size=8, execution=execution)
