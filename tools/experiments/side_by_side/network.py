"""S networks of one architecture as one network, with S times the channels and S groups.

A convolution with S groups is S convolutions, and batch norm is separate for each channel. So one network with S times
the channels trains S students at once, with as many kernels as a single student needs.
"""

import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead
from torch import Tensor, fx, nn

from fnkd_plugin.errors import SetupError


class ConvNorm(nn.Module):
    """A convolution and its batch norm, optionally followed by an addition and a ReLU, of S networks.

    Weights are [S, K * K, inputs, outputs] in fp32. On a CPU it uses PyTorch's operators, on a GPU our Triton kernels.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], norms: Sequence[nn.BatchNorm2d], name: str, relu: bool) -> None:
        super().__init__()
        conv, norm = convs[0], norms[0]
        size = conv.kernel_size[0]
        fits = (
            conv.kernel_size in ((1, 1), (3, 3))
            and conv.stride in ((1, 1), (2, 2))
            and conv.padding == (size // 2, size // 2)
            and (conv.dilation, conv.groups, conv.bias) == ((1, 1), 1, None)
            and norm.affine
            and norm.track_running_stats
            and norm.momentum is not None
        )
        if not fits:
            raise SetupError(f'side by side, {name} must be a 1x1 or 3x3 convolution without bias, but is {conv}.')
        self.stride, self.size, self.momentum, self.eps = conv.stride[0], size, float(norm.momentum), norm.eps
        self.relu = relu
        weights = torch.stack([c.weight.detach() for c in convs])  # [S, outputs, inputs, K, K]
        self.weight = nn.Parameter(weights.permute(0, 3, 4, 2, 1).flatten(1, 2).contiguous())
        self.gamma = nn.Parameter(torch.cat([n.weight.detach() for n in norms]))
        self.beta = nn.Parameter(torch.cat([n.bias.detach() for n in norms]))
        self.mean: Tensor
        self.var: Tensor
        self.register_buffer('mean', torch.cat([n.running_mean for n in norms]))  # type: ignore[misc]
        self.register_buffer('var', torch.cat([n.running_var for n in norms]))  # type: ignore[misc]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[N, S * inputs, H, W] to [N, S * outputs, H', W']; on a GPU [S, N, H, W, inputs] to [..., outputs]."""
        if x.is_cuda:
            return self._fused(x, residual)
        networks, _, inputs, outputs = self.weight.shape
        weight = self.weight.permute(0, 3, 2, 1).reshape(networks * outputs, inputs, self.size, self.size)
        y = F.conv2d(x, weight, None, self.stride, self.size // 2, groups=networks)
        y = F.batch_norm(y, self.mean, self.var, self.gamma, self.beta, self.training, self.momentum, self.eps)
        if residual is not None:
            y = y + residual
        return F.relu(y) if self.relu else y

    def _fused(self, x: Tensor, residual: Tensor | None) -> Tensor:
        from experiments.side_by_side import kernels

        if self.training:
            running = (self.mean, self.var)
            return kernels.ConvNorm.apply(
                x, self.weight, self.gamma, self.beta, residual, running,
                self.stride, self.relu, self.momentum, self.eps,
            )  # fmt: skip
        scale = self.gamma * (self.var + self.eps).rsqrt()
        shift = self.beta - self.mean * scale
        w = self.weight.to(x.dtype)
        return kernels.convolve(x, w, self.stride, affine=(scale, shift), residual=residual, relu=self.relu)[0]

    def conv_weight(self, network: int) -> Tensor:
        """The weight of one network in the layout of ``nn.Conv2d``."""
        _, _, inputs, outputs = self.weight.shape
        return self.weight[network].permute(2, 1, 0).reshape(outputs, inputs, self.size, self.size)


class SideBySide(nn.Module):
    """Image classifiers of one architecture: a backbone such as CIFARResNet, global average pooling, a linear head.

    Args:
        models: The classifiers, whose weights are copied.

    Raises:
        SetupError: If a model has any other part. The message names it.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        for model in models:
            known = type(model) is ImageClassifier and type(model.neck) is GlobalAveragePooling
            if not known or type(model.head) is not LinearClsHead:
                raise SetupError(
                    'side by side, only an ImageClassifier with GlobalAveragePooling and a LinearClsHead is trained, '
                    f'not {type(model).__name__} with {type(getattr(model, "neck", None)).__name__} and '
                    f'{type(getattr(model, "head", None)).__name__}.'
                )
        self.count = len(models)
        self.backbone, self._names = _fused_backbone([m.backbone for m in models])
        self.weight = nn.Parameter(torch.stack([m.head.fc.weight.detach() for m in models]))
        self.bias = nn.Parameter(torch.stack([m.head.fc.bias.detach() for m in models]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [S, N, H, W, 3] to logits [S, N, K] and features [S, N, D], both fp32."""
        if images.is_cuda:
            features = self.backbone(images)[-1].float().mean((2, 3))
        else:
            x = images.permute(1, 0, 4, 2, 3).flatten(1, 2).contiguous(memory_format=torch.channels_last)
            means = self.backbone(x)[-1].mean((2, 3))
            features = means.view(len(means), self.count, -1).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], features, self.weight.transpose(1, 2)), features

    def state_of(self, network: int, batches: int) -> dict[str, Tensor]:
        """The state dict of one classifier.

        Args:
            network: Its index.
            batches: The number of training batches, which batch norm stores.
        """
        found: dict[str, Tensor] = {}
        for (conv, norm), name in self._names.items():
            module = self.backbone.get_submodule(name)
            assert isinstance(module, ConvNorm)
            found[f'backbone.{conv}.weight'] = module.conv_weight(network)
            for key, tensor in (('weight', module.gamma), ('bias', module.beta)):
                found[f'backbone.{norm}.{key}'] = tensor.view(self.count, -1)[network]
            found[f'backbone.{norm}.running_mean'] = module.mean.view(self.count, -1)[network]
            found[f'backbone.{norm}.running_var'] = module.var.view(self.count, -1)[network]
            found[f'backbone.{norm}.num_batches_tracked'] = torch.tensor(batches)
        found['head.fc.weight'], found['head.fc.bias'] = self.weight[network], self.bias[network]
        return {key: value.detach().cpu().clone() for key, value in found.items()}


def _fused_backbone(backbones: Sequence[nn.Module]) -> tuple[fx.GraphModule, dict[tuple[str, str], str]]:
    """The backbones' graph with one module for each convolution and the operators that follow; names of its parts."""
    graph = fx.Tracer().trace(backbones[0])
    modules = dict(backbones[0].named_modules())

    def is_a(node: object, kind: type) -> bool:
        return isinstance(node, fx.Node) and node.op == 'call_module' and isinstance(modules[str(node.target)], kind)

    for node in list(graph.nodes):
        if is_a(node, nn.Identity):
            node.replace_all_uses_with(node.args[0])
    # For each batch norm: the ReLU that follows, the addition between them (if any), and the index of its other input.
    ends: dict[fx.Node, tuple[fx.Node, fx.Node | None, int]] = {}
    for relu in graph.nodes:
        if relu.target is not F.relu:
            continue
        source = relu.args[0]
        if is_a(source, nn.BatchNorm2d) and len(source.users) == 1:
            ends[source] = relu, None, 0
        elif source.target is operator.add and len(source.users) == 1:
            for norm, other in zip(source.args, (1, 0), strict=True):
                if is_a(norm, nn.BatchNorm2d) and len(norm.users) == 1:
                    ends[norm] = relu, source, other
                    break
    root, names = nn.Module(), {}
    for norm in [node for node in graph.nodes if is_a(node, nn.BatchNorm2d)]:
        conv = norm.args[0]
        if not is_a(conv, nn.Conv2d) or len(conv.users) != 1:
            raise SetupError(f'side by side, a batch norm must follow a convolution, unlike {norm.target}.')
        end, total, other = ends.get(norm, (norm, None, 0))
        name = f'conv{len(names)}'
        names[str(conv.target), str(norm.target)] = name
        convs, norms = ([m.get_submodule(str(node.target)) for m in backbones] for node in (conv, norm))
        root.add_module(name, ConvNorm(convs, norms, str(conv.target), relu=end is not norm))  # type: ignore[arg-type]
        with graph.inserting_before(end):
            inputs = conv.args if total is None else (*conv.args, total.args[other])
            end.replace_all_uses_with(graph.call_module(name, inputs))
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ('output', 'placeholder'):
            graph.erase_node(node)
    left = [str(node.target) for node in graph.nodes if node.op in ('call_module', 'get_attr')]
    if set(left) != set(names.values()):
        raise SetupError(f'side by side, {", ".join(sorted(set(left) - set(names.values())))} cannot be trained.')
    return fx.GraphModule(root, graph), names
