"""Weights in channels-last order change the speed alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import plain_config
from tests.helpers import build, config, distilled, raw_batch, resnet, timm_student, timm_teacher, train
from tests.test_mm.test_hooks.runs import assert_resumes_exactly

HOOK = dict(type='ChannelsLastHook')
# Not of 4 channels, as other tests' are, which the hook refuses on CPUs.
STUDENT = resnet(width=8)
ONE_STEP = dict(by_epoch=False, max_iters=1)
pytestmark = pytest.mark.upstream


def _channels_last(module: nn.Conv2d) -> bool:
    return module.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('kind', ['plain', 'distilled'])
def test_same_results_to_rounding_in_another_order(kind: str, tmp_path: Path) -> None:
    model = STUDENT if kind == 'plain' else distilled(STUDENT, timm_teacher(tmp_path))
    # One step: batch norm over four values of the last stage makes rounding grow from step to step.
    plain = train(model, tmp_path / 'plain', train_cfg=ONE_STEP).model
    hooked = train(model, tmp_path / 'hooked', train_cfg=ONE_STEP, custom_hooks=[HOOK]).model
    wide = [m for m in hooked.modules() if isinstance(m, nn.Conv2d) and m.weight[0].numel() > m.in_channels]
    assert wide and all(_channels_last(m) and not m.weight.is_contiguous() for m in wide)
    assert list(hooked.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(hooked.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_activations_follow_the_weights(tmp_path: Path) -> None:
    model = train(STUDENT, tmp_path, train_cfg=ONE_STEP, custom_hooks=[HOOK]).model
    feature_map = model.backbone(torch.randn(2, 3, 64, 64))[-1]
    assert feature_map.is_contiguous(memory_format=torch.channels_last) and not feature_map.is_contiguous()


def _order_of_the_teacher(model: Any, autocast: bool) -> bool:
    """Whether it runs in channels-last order."""
    data = model.data_preprocessor(raw_batch(), training=True)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        model(**data, mode='loss')
    weight = model.distillation.teacher.model.conv1[0].weight
    return bool(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())


@pytest.mark.parametrize('converted', [True, False])
def test_under_autocast_the_teacher_follows(converted: bool, tmp_path: Path) -> None:
    """Without, it stays as it is in its own framework, so that fp32 runs are exact."""
    hooks = [HOOK] if converted else []
    model = train(distilled(STUDENT, timm_teacher(tmp_path)), tmp_path, train_cfg=ONE_STEP, custom_hooks=hooks).model
    assert [_order_of_the_teacher(model, autocast) for autocast in (False, True)] == [False, converted]


@pytest.mark.parametrize('channels_last', [True, False])
def test_a_teacher_follows_a_timm_student(channels_last: bool, tmp_path: Path) -> None:
    model = build(distilled(timm_student(channels_last=channels_last), timm_teacher(tmp_path)))
    assert [_order_of_the_teacher(model, autocast) for autocast in (False, True)] == [False, channels_last]


def test_following_does_not_break_a_compiled_graph(tmp_path: Path) -> None:
    """Once the first batch has converted the teacher, which is why ``CompileHook`` does not compile it."""
    model = build(distilled(timm_student(channels_last=True), timm_teacher(tmp_path))).eval()
    data = model.data_preprocessor(raw_batch(), training=True)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, backend='eager', fullgraph=True)
    with torch.autocast('cpu', torch.bfloat16):
        expected = model(**data, mode='loss')
        found = compiled(**data, mode='loss')
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)


def test_a_net_whose_gradients_overwrite_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r'layer2\.0\.downsample\.0, a strided 1x1 convolution of 4 input channels'):
        train(resnet(width=4), tmp_path, train_cfg=ONE_STEP, custom_hooks=[HOOK])


def test_resumes_exactly(tmp_path: Path) -> None:
    assert_resumes_exactly(STUDENT, tmp_path, custom_hooks=[HOOK, dict(type='EMAHook', momentum=0.1)])


def test_the_plain_config_has_none_of_it(tmp_path: Path) -> None:
    cfg = Config(dict(config(STUDENT, tmp_path, custom_hooks=[HOOK, dict(type='EMAHook')])))
    assert [hook['type'] for hook in plain_config(cfg).custom_hooks] == ['EMAHook']
