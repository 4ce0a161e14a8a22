"""``--compile`` on a GPU: captured, and the numbers of eager training."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.helpers import distilled, timm_teacher
from tests.test_cuda.test_training import EXACT, SGD, assert_close, losses_of, student
from tests.test_mm.test_hooks.runs import run

COMPILE = dict(type='CompileHook')


@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
@pytest.mark.parametrize('kind', ['plain', 'KDLoss', 'FNKDLoss'])
def test_compiled_training_is_captured_and_equals_eager(kind: str, dtype: str | None, tmp_path: Path) -> None:
    loss = dict(type='FNKDLoss', tau=2.0) if kind == 'FNKDLoss' else dict(type=kind)
    model = student() if kind == 'plain' else distilled(student(), timm_teacher(tmp_path), loss)
    wrapper: dict = dict(optimizer=SGD)
    if dtype is not None:
        wrapper = dict(type='AmpOptimWrapper', dtype=dtype, loss_scale=64.0, optimizer=SGD)
    options = dict(randomness=dict(seed=1), optim_wrapper=wrapper)
    eager = losses_of(model, tmp_path / 'eager', **options)
    torch.compiler.reset()
    counters.clear()
    found = losses_of(model, tmp_path / 'compiled', COMPILE, **options)
    assert counters['inductor']['cudagraph_skips'] == 0
    from torch._inductor.cudagraph_trees import get_manager

    manager = get_manager(create_if_none_exists=False)
    assert manager is not None and manager.new_graph_id().id > 0
    assert_close(found, eager, rel=1e-2 if dtype else 1e-3)


def test_what_is_logged_of_captured_steps_is_not_overwritten(tmp_path: Path) -> None:
    """Statistics are read after the whole step, from memory of the captured graph."""
    logged = []
    # With tau='auto' its first 20 batches would run in eager mode, and the run has only 8.
    model = distilled(student(), timm_teacher(tmp_path), dict(type='FNKDLoss', tau=2.0))
    for name, hooks in (('eager', []), ('compiled', [COMPILE])):
        torch.compiler.reset()
        options = dict(custom_hooks=hooks, randomness=EXACT, optim_wrapper=dict(optimizer=SGD))
        options['default_hooks'] = dict(logger=dict(type='LoggerHook', interval=4))
        hub = run(model, tmp_path / name, **options).message_hub
        logged.append(
            [
                hub.get_scalar(f'train/{key}').current()
                for key in ('teacher_acc', 'teacher_norm', 'student_norm', 'hard_ce')
            ]
        )
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)
