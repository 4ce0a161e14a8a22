"""CIFAR ResNets: published sizes, an independent reference, and the framework's requirements of a backbone."""

import importlib.util
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.models import CIFARResNet
from fnkd_plugin.readers import find_last_affine, probe
from tests.helpers import build

pytestmark = pytest.mark.upstream

WIDE = dict(stem_channels=32, base_channels=64)


def _classifier(num_classes: int = 100, **backbone: int) -> nn.Module:
    return build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='CIFARResNet', **backbone),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=4 * backbone.get('base_channels', 16)),
        )
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ('options', 'published'),
    [
        (dict(depth=20), 278_324),
        (dict(depth=56), 861_620),
        (dict(depth=110), 1_736_564),
        (dict(depth=32, **WIDE), 7_433_860),
        (dict(depth=8, **WIDE), 1_233_540),
    ],
)
def test_sizes_are_the_published_ones_of_cifar_100(options: dict, published: int) -> None:
    assert _size(_classifier(**options)) == published


@pytest.mark.parametrize('depth', [20, 56])
def test_size_of_the_preactivation_nets(depth: int) -> None:
    """3x3 convolutions, two 1x1 shortcuts without BN, one BN before each of the former but the stem, one at the end."""
    n = (depth - 2) // 6
    convolutions = 27 * 16 + sum(9 * c * c * (2 * n) for c in (16, 32, 64)) - sum(9 * c * c // 2 for c in (32, 64))
    shortcuts = 16 * 32 + 32 * 64
    norms = 2 * (sum(2 * n * c for c in (16, 32, 64)) - (32 - 16) - (64 - 32)) + 2 * 64
    assert _size(CIFARResNet(depth, preact=True)) == convolutions + shortcuts + norms


@pytest.mark.parametrize('preact', [False, True])
def test_maps_have_32_16_and_8_pixels_a_side(preact: bool) -> None:
    net = CIFARResNet(14, stem_channels=4, base_channels=8, preact=preact)
    shapes = []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    output = net(torch.zeros(2, 3, 32, 32))
    assert shapes == [(8, 32, 32), (16, 16, 16), (32, 8, 8)]
    assert isinstance(output, tuple) and [o.shape for o in output] == [(2, 32, 8, 8)]


@pytest.mark.parametrize('depth', [-4, 2, 7, 18, 21, 52])
def test_a_depth_that_is_none_names_the_nearest(depth: int) -> None:
    with pytest.raises(SetupError, match=rf'6n \+ 2.*is {depth}; the nearest are') as error:
        CIFARResNet(depth)
    below, above = (int(word.strip('.')) for word in str(error.value).split() if word.strip('.').isdigit())
    assert above == below + 6 and (depth < below == 8 or below < depth < above)
    assert CIFARResNet(below) and CIFARResNet(above)


@pytest.mark.parametrize('depth', ['20', None, 20.0])
def test_a_depth_that_is_not_an_integer_is_refused(depth: object) -> None:
    with pytest.raises(SetupError, match=f'a whole number .* but is {depth!r}'):
        CIFARResNet(depth)


@pytest.mark.parametrize('channels', [0, 'a', None, 1.5])
def test_a_net_without_channels_is_refused(channels: object) -> None:
    with pytest.raises(SetupError, match=f'must be whole numbers >= 1, but are 16 and {channels!r}'):
        CIFARResNet(20, base_channels=channels)
    with pytest.raises(SetupError, match=f'must be whole numbers >= 1, but are {channels!r} and 16'):
        CIFARResNet(20, stem_channels=channels)


@pytest.mark.parametrize('preact', [False, True])
def test_last_affine_layer_is_the_head_and_gradients_reach_everything(preact: bool) -> None:
    model = _classifier(depth=14, num_classes=5, preact=preact)
    output, layers = probe(model, lambda images: model(images, mode='tensor'))
    assert find_last_affine(output, layers) is model.head.fc
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def _reference(state: dict[str, Tensor], images: Tensor, preact: bool, blocks: int) -> Tensor:
    """The whole network as a few lines of functions on a state dict, in eval mode."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f'{name}.{key}'].view(-1, 1, 1) for key in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = state[f'{name}.weight']
        return F.conv2d(x, kernel, stride=stride, padding=len(kernel[0, 0]) // 2)

    x = conv(images, 'conv')
    x = x if preact else norm(x, 'bn').clamp(min=0)
    for stage in range(3):
        for block in range(blocks):
            at, stride = f'stages.{stage}.{block}', 2 if stage and not block else 1
            if preact:
                y = norm(x, f'{at}.bn1').clamp(min=0)
                x = conv(x, f'{at}.shortcut', stride) if f'{at}.shortcut.weight' in state else x
                x = x + conv(norm(conv(y, f'{at}.conv1', stride), f'{at}.bn2').clamp(min=0), f'{at}.conv2')
            else:
                y = norm(conv(x, f'{at}.conv1', stride), f'{at}.bn1').clamp(min=0)
                y = norm(conv(y, f'{at}.conv2'), f'{at}.bn2')
                if f'{at}.shortcut.0.weight' in state:
                    x = norm(conv(x, f'{at}.shortcut.0', stride), f'{at}.shortcut.1')
                x = (x + y).clamp(min=0)
    return norm(x, 'bn').clamp(min=0) if preact else x


@pytest.mark.parametrize('preact', [False, True])
@pytest.mark.parametrize(('depth', 'options'), [(20, {}), (8, dict(stem_channels=8, base_channels=12))])
def test_equals_a_functional_reference(depth: int, options: dict, preact: bool) -> None:
    net = CIFARResNet(depth, preact=preact, **options).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    expected = _reference(state, images, preact, (depth - 2) // 6)
    net.eval()
    torch.testing.assert_close(net(images)[0], expected, rtol=1e-9, atol=1e-9)


def test_weights_start_as_he_et_al_propose() -> None:
    torch.manual_seed(0)
    net = CIFARResNet(20)
    net.init_weights()
    kernel = net.stages[2][1].conv1.weight
    fan_out = 64 * 9
    assert kernel.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert net.stages[2][1].bn1.weight.eq(1).all()


def test_an_input_norm_standardises_the_images() -> None:
    plain, normed = CIFARResNet(8, base_channels=4), CIFARResNet(8, base_channels=4, input_norm=True)
    normed.load_state_dict(plain.state_dict(), strict=False)
    images = 3 + 5 * torch.randn(16, 3, 32, 32)
    mean, var = images.mean((0, 2, 3), keepdim=True), images.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(normed(images)[0], plain((images - mean) / (var + 1e-5).sqrt())[0], rtol=1e-3, atol=1e-4)
    assert _size(normed) == _size(plain)


AUTHORS = Path(os.environ.get('FNKD_WEIGHTS', 'no such folder')) / 'authors_preact56_cifar100_coarse.safetensors'
CIFAR100 = Path(os.environ.get('FNKD_DATA', 'no such folder')) / 'cifar100'


@pytest.mark.skipif(not AUTHORS.is_file(), reason=f'FNKD_WEIGHTS holds no {AUTHORS.name}')
@pytest.mark.skipif(not CIFAR100.is_dir(), reason='FNKD_DATA holds no cifar100')
@pytest.mark.parametrize(
    ('count', 'accuracy', 'norm', 'std', 'right', 'wrong'),
    [
        (1_000, 81.60, 7.5806, 1.2669, 7.7376, 6.8840),
        # The published figures: 81.73 %, 7.61, 1.27, 7.77, 6.88.
        pytest.param(10_000, 81.73, 7.6082, 1.2743, 7.7714, 6.8781, marks=pytest.mark.slow),
    ],
)
def test_the_authors_teacher_is_as_good_as_published(
    count: int, accuracy: float, norm: float, std: float, right: float, wrong: float
) -> None:
    """Released weights: the network's only independent reference for where its shortcuts read."""
    spec = importlib.util.spec_from_file_location('load_cifar100', CIFAR100 / 'load_cifar100.py')
    assert spec and spec.loader
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    images, _, superclasses = reader.load(CIFAR100, 'test')
    model = _classifier(depth=56, preact=True).eval()
    model.load_state_dict(safetensors.torch.load_file(AUTHORS))
    # The input BN without affine, folded into the normalisation.
    mean = torch.tensor([112.47278046494723, 106.84577662056684, 96.2981025802195]).view(3, 1, 1)
    scale = torch.tensor([76.61762429151447, 73.27765688658587, 74.5653342208761]).view(3, 1, 1)
    with torch.no_grad():
        pixels = torch.from_numpy(images[:count]).permute(0, 3, 1, 2)
        features = torch.cat([model.extract_feat((batch.float() - mean) / scale)[0] for batch in pixels.split(250)])
        correct = model.head.fc(features).argmax(1) == torch.as_tensor(superclasses[:count])
    norms = features.norm(dim=1)
    found = [100 * correct.float().mean(), norms.mean(), norms.std(), norms[correct].mean(), norms[~correct].mean()]
    assert [float(x) for x in found] == pytest.approx([accuracy, norm, std, right, wrong], abs=2e-3)
