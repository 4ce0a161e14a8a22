"""The Triton kernels against PyTorch's operators, in Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton')
TOOLS = Path(__file__).resolve().parents[3] / 'tools'
LAYERS = [
    (2, 3, 16, 3, 1, False, True),  # a stem
    (3, 16, 16, 3, 1, True, True),  # the end of a block
    (2, 16, 32, 3, 2, False, True),
    (2, 16, 32, 1, 2, False, False),  # a shortcut
    (1, 64, 128, 3, 2, True, False),  # more than one block of channels
]


@pytest.fixture(scope='module')
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Of each layer, measured in a process of its own: the interpreter is chosen when Triton is imported."""
    out = tmp_path_factory.mktemp('kernels') / 'differences.pt'
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': os.pathsep.join([str(TOOLS), *sys.path])}
    subprocess.run([sys.executable, __file__, str(out)], check=True, env=env)
    return torch.load(out)


@pytest.mark.parametrize('layer', LAYERS, ids=str)
def test_a_layer_and_its_gradients_are_pytorchs(layer: tuple, differences: dict[str, dict[str, float]]) -> None:
    found = differences[str(layer)]
    assert set(found) >= {'training', 'evaluation', 'mean', 'var', 'of_x', 'of_weight', 'of_gamma', 'of_beta'}
    assert ('of_residual' in found) == layer[5]
    assert all(value < 1e-5 for value in found.values()), found


def _measure(networks: int, inputs: int, outputs: int, size: int, stride: int, residual: bool, relu: bool) -> dict:
    import torch.nn.functional as F
    from experiments.side_by_side import kernels

    def stacked(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (networks, -1)).permute(1, 0, 3, 4, 2)

    torch.manual_seed(0)
    count, side, channels = 2, 8, networks * outputs
    parts = dict(
        x=torch.randn(count, networks * inputs, side, side),
        weight=torch.randn(networks, size * size, inputs, outputs) / (size * size * inputs) ** 0.5,
        gamma=torch.rand(channels) + 0.5,
        beta=torch.randn(channels),
        residual=torch.randn(count, channels, side // stride, side // stride) if residual else None,
    )
    parts = {name: part.requires_grad_() for name, part in parts.items() if part is not None}
    r = parts.get('residual')
    running, expected_running = ([torch.zeros(channels), torch.ones(channels)] for _ in range(2))
    x, w, gamma, beta = (parts[name] for name in ('x', 'weight', 'gamma', 'beta'))
    found = kernels.ConvNorm.apply(
        stacked(x), w, gamma, beta, None if r is None else stacked(r), running, stride, relu, 0.1, 1e-5
    )

    def end(z: torch.Tensor) -> torch.Tensor:
        z = z if r is None else z + r
        return stacked(z.relu() if relu else z)

    conv = w.permute(0, 3, 2, 1).reshape(channels, inputs, size, size)
    y = F.conv2d(x, conv, stride=stride, padding=size // 2, groups=networks)
    expected = end(F.batch_norm(y, *expected_running, gamma, beta, True, 0.1, 1e-5))
    g = torch.randn_like(expected)
    pairs = dict(
        zip(
            (f'of_{name}' for name in parts),
            zip(*(torch.autograd.grad(out, list(parts.values()), g) for out in (found, expected)), strict=True),
            strict=True,
        )
    )
    pairs |= dict(training=(found, expected))
    pairs |= dict(zip(('mean', 'var'), zip(running, expected_running, strict=True), strict=True))
    scale = gamma * (expected_running[1] + 1e-5).rsqrt()
    tested, _ = kernels.convolve(
        stacked(x).detach(),
        w.detach(),
        stride,
        affine=(scale.detach(), (beta - expected_running[0] * scale).detach()),
        residual=None if r is None else stacked(r).detach(),
        relu=relu,
    )
    pairs['evaluation'] = tested, end(F.batch_norm(y, *expected_running, gamma, beta, False))
    return {name: float((a - b).norm() / b.norm()) for name, (a, b) in pairs.items()}


if __name__ == '__main__':
    torch.save({str(layer): _measure(*layer) for layer in LAYERS}, sys.argv[1])
