"""The fused kernel on a real GPU against its definition in float64, and all soft losses against those on a CPU."""

from typing import Any

import pytest
import torch
from mmpretrain.registry import MODELS
from torch import Tensor

from fnkd_plugin.losses import scaled_cross_entropy
from fnkd_plugin.prediction import Prediction
from tests.test_cuda import DEVICE
from tests.test_losses.test_cross_entropy_kernel import run_checks
from tests.test_mm.test_no_waiting import LOSSES


@pytest.mark.timeout(900)
@pytest.mark.parametrize('marker', ['not slow', 'slow'])
def test_kernel_against_its_definition(marker: str) -> None:
    pytest.importorskip('triton')
    run_checks(False, marker)


def test_triton_works_here() -> None:
    pytest.importorskip('triton')
    assert scaled_cross_entropy._fused_cross_entropy() is not None


def _outcome(loss: Any, parts: list[list[Tensor]], labels: Tensor) -> list[Tensor]:
    learned = [x.requires_grad_() for x in parts[0]]
    loss.observe(Prediction(*parts[1]))
    value = loss(Prediction(*learned), Prediction(*parts[1]), labels)
    return [value, *torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('soft_loss', LOSSES, ids=lambda loss: loss['type'])
def test_losses_and_gradients_are_those_of_a_cpu_in_fp64(soft_loss: dict, dtype: torch.dtype) -> None:
    count, classes = 32, 100
    parts = [
        [(3 * torch.randn(count, classes)).to(dtype), 1 + 8 * torch.rand(count), torch.randn(classes)] for _ in range(2)
    ]
    labels = torch.arange(count) % classes
    exact = _outcome(MODELS.build(dict(soft_loss)), [[x.double() for x in part] for part in parts], labels)
    on_gpu = [[x.to(DEVICE) for x in part] for part in parts]
    found = _outcome(MODELS.build(dict(soft_loss)), on_gpu, labels.to(DEVICE))
    assert found[0].dtype == torch.float32
    # A gradient in half precision is rounded once.
    bound = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    for mine, theirs in zip(found, exact, strict=True):
        assert (mine.detach().cpu().double() - theirs).norm() <= bound * theirs.norm() + 1e-6
