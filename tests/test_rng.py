"""What we add draws from copies of the generators."""

import random

import numpy as np
import pytest
import torch

from fnkd_plugin.rng import isolated_rng

pytestmark = pytest.mark.upstream


def _draws() -> list:
    return [random.random(), np.random.rand(), torch.rand(1).item(), np.random.randn(), torch.randn(1).item()]


def _seed() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)


def test_all_three_streams_go_on_as_if_nothing_had_been_drawn() -> None:
    _seed()
    expected = _draws() + _draws()
    _seed()
    found = _draws()
    with isolated_rng():
        _draws()
        _seed()
    assert found + _draws() == expected


def test_also_after_an_error() -> None:
    _seed()
    expected = _draws()
    _seed()
    with pytest.raises(KeyError), isolated_rng():
        _draws()
        raise KeyError
    assert _draws() == expected


def test_inside_the_streams_go_on_from_outside() -> None:
    _seed()
    expected = _draws()
    _seed()
    with isolated_rng():
        assert _draws() == expected


def test_does_not_break_a_compiled_graph() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        with isolated_rng():
            return 2 * x

    assert torch.equal(torch.compile(step, backend='eager', fullgraph=True)(torch.ones(2)), torch.full((2,), 2.0))
