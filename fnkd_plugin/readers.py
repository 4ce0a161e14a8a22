"""Finds the layer that makes a classifier's logits, if possible an affine one, and reads them there."""

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import at_least_fp32
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.rng import isolated_rng

ImageSize = int | tuple[int, int]
"""Height and width in pixels, or one number for both."""

_FALLBACK_SIZES = (224, 32, 299, 384)
Model = TypeVar('Model', bound=nn.Module)


class Ran(NamedTuple):
    """How a module ran in :func:`probe`: its output, that one's version then, and how it was called."""

    output: Tensor
    version: int
    positional: int
    keywords: frozenset[str]


LayerOutputs = dict[nn.Module, Ran]


def _is_affine(module: nn.Module) -> bool:
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or (
        isinstance(module, nn.Conv2d) and (module.kernel_size != (1, 1) or module.groups != 1)
    ):
        return False
    # A subclass with a forward of its own may do anything: normalise feature and weight, as ArcFace's does.
    return type(module).forward is kind.forward or _maps_affinely(module)


def _maps_affinely(layer: nn.Linear | nn.Conv2d) -> bool:
    weight = layer.weight.flatten(1)
    with isolated_rng(), torch.no_grad():
        x = torch.randn(2, weight.shape[1], device=weight.device, dtype=weight.dtype)
        expected = F.linear(x, weight, layer.bias)
        found = layer(x if isinstance(layer, nn.Linear) else x[:, :, None, None])
    return found.numel() == expected.numel() and torch.allclose(found.view_as(expected), expected, 1e-2, 1e-2)


def _same_numbers(a: Any, ran: Ran) -> bool:
    # The same storage, not equal values: a flattened or permuted view is still the layer's own output. An in-place
    # operation since leaves the storage, but counts up the version.
    return (
        isinstance(a, Tensor)
        and a.numel() == ran.output.numel()
        and a.untyped_storage()._cdata == ran.output.untyped_storage()._cdata
        and a._version == ran.version
    )


def image_size(size: Any) -> ImageSize | None:
    """A model's ``img_size`` or ``input_size`` as [..., H, W] or a number; None if it is neither."""
    if isinstance(size, (tuple, list)) and size and all(isinstance(side, int) for side in size):
        height, width = size[-2:] if len(size) > 1 else (size[0], size[0])
        return height if height == width else (height, width)
    return size if isinstance(size, int) else None


def _size_hints(model: nn.Module) -> list[ImageSize]:
    hints = []
    for module in model.modules():
        cfg = getattr(module, 'pretrained_cfg', None)
        size = image_size(cfg.get('input_size') if isinstance(cfg, dict) else getattr(module, 'img_size', None))
        if size and size not in hints:
            hints.append(size)
    return hints


def _channel_hints(model: nn.Module) -> list[int]:
    # Of the first convolution; it may see something else than the image, such as pixels made into channels.
    return [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)][:1]


def only_size(model: nn.Module, forward: Callable[[Tensor], Any]) -> ImageSize | None:
    """The only image size that a model takes, such as an MLP-Mixer's; None if it is unknown or if others work."""

    def takes(size: ImageSize) -> bool:
        try:
            probe(model, forward, size)
        except SetupError:
            return False
        return True

    own = next((size for size in _size_hints(model) if takes(size)), None)
    if own is None:
        return None
    height, width = (own, own) if isinstance(own, int) else own
    return None if takes((height // 2, width // 2)) or takes((2 * height, 2 * width)) else own


def probe(
    model: nn.Module, forward: Callable[[Tensor], Any], size: ImageSize | None = None, channels: int | None = None
) -> tuple[Any, LayerOutputs]:
    """Run ``forward`` once on one image in eval mode, leaving the model and the random streams as they were.

    Args:
        model: The model whose modules are watched.
        forward: Images [1, C, H, W] to the model's output.
        size: The image size, if known; otherwise the model's own hints and common sizes are tried.
        channels: C of a model whose first convolution does not see the image; 3 if None.

    Returns:
        The output, and how each module inside the model ran whose own output is one vector.

    Raises:
        SetupError: If no size fits; the first error is its cause.
    """
    outputs: LayerOutputs = {}

    def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if isinstance(output, Tensor) and output.numel() == max(output.shape, default=0):
            outputs[module] = Ran(output, output._version, len(args), frozenset(kwargs))

    reference = next(model.parameters(), torch.empty(0))
    modes = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    inside = [module for module in model.modules() if module is not model]
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in inside]
    sizes = list(dict.fromkeys([size] if size else [*_size_hints(model), *_FALLBACK_SIZES]))
    depths = dict.fromkeys([*_channel_hints(model), channels or 3])
    first_error: Exception | None = None
    try:
        # In some models eval() and train() do more than set flags: they gather biases, freeze stages.
        model.eval()
        for depth, side in itertools.product(depths, sizes):
            height, width = (side, side) if isinstance(side, int) else side
            image = torch.zeros(1, depth, height, width, device=reference.device, dtype=reference.dtype)
            outputs.clear()
            try:
                with isolated_rng(), torch.no_grad():
                    return forward(image), outputs
            except Exception as error:  # a size that does not fit fails in as many ways as there are models
                first_error = first_error or error
    finally:
        for handle in handles:
            handle.remove()
        model.train(modes[model])
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in trainable.items():
            parameter.requires_grad_(requires_grad)
    raise SetupError(
        f'{type(model).__name__}: it fails in eval mode on images of {", ".join(map(str, sizes))} pixels '
        f'({type(first_error).__name__}: {first_error}). Check its config.'
    ) from first_error


def find_last_affine(output: Any, layer_outputs: LayerOutputs) -> nn.Module | None:
    """The affine layer whose own output is the model's output, or None.

    A mean of two heads, a cosine or a scaled output is not an affine layer's own output; then there is not one feature
    norm, and None is returned.
    """
    found = [layer for layer, ran in layer_outputs.items() if _same_numbers(output, ran)]
    return next((layer for layer in reversed(found) if _is_affine(layer)), None)


def find_last_module(output: Any, layer_outputs: LayerOutputs) -> nn.Module | None:
    """The outermost module inside the model whose own output, one vector, is the model's output, or None."""
    return next((module for module, ran in reversed(layer_outputs.items()) if _same_numbers(output, ran)), None)


class Reader(ABC):
    """Reads what a module makes of a batch, inside ``with reader:``, by a forward hook.

    The hook is there only meanwhile, so that nothing of ours is on the model that others script, quantise or copy;
    unless it is attached for good, which a compiled graph needs: a hook registered while it runs would break it.

    Args:
        module: The module to read.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.attached = self._reading = False
        self._handle: Any = None
        self._read: Prediction | None = None

    def attach(self) -> 'Reader':
        """Keep the hook on the module."""
        if not self.attached:
            self._module.register_forward_hook(self._hook, with_kwargs=True)
            self.attached = True
        return self

    def __enter__(self) -> None:
        if not self.attached:
            self._handle = self._module.register_forward_hook(self._hook, with_kwargs=True)
        self._reading = True

    def __exit__(self, kind: Any, *error: Any) -> None:
        self._reading = False
        if kind is not None:
            self._read = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __deepcopy__(self, memo: dict) -> 'Reader':
        # An EMA copy of the model copies the hook with it; one reader serves both.
        return self

    def _hook(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        if self._reading:
            self._read = self._prediction(module, args, kwargs, output)

    @abstractmethod
    def _prediction(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Prediction: ...

    def take(self) -> Prediction | None:
        """The prediction read since the last call, if any."""
        read, self._read = self._read, None
        return read


def without_readers(model: Model) -> Model:
    """A copy of a model without the hooks of attached readers."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(getattr(hook, '__self__', None), Reader):
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
    return model


class AffineReader(Reader):
    """Reads logits, feature norm and bias of the last affine layer."""

    def _prediction(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Prediction:
        feature = at_least_fp32(args[0]).flatten(1)
        norm = torch.linalg.vector_norm(feature, dim=1)
        return Prediction(output.flatten(1), norm, module.bias)


class LogitReader(Reader):
    """Reads the logits alone, of a module that makes them in no one affine layer.

    They are those of prediction (our choice): a head that takes the labels, too, in its loss (ArcFace, whose margin
    lowers the true class's logit) is called once more without them.

    Args:
        module: The module whose output is the model's.
        predicting: How it was called when the model predicted.
    """

    def __init__(self, module: nn.Module, predicting: Ran) -> None:
        super().__init__(module)
        self._positional, self._keywords = predicting.positional, predicting.keywords

    def _prediction(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Prediction:
        if len(args) > self._positional or not self._keywords.issuperset(kwargs):
            known = {key: value for key, value in kwargs.items() if key in self._keywords}
            output = module.forward(*args[: self._positional], **known)
        return Prediction(output)


class SumReader(Reader):
    """Reads the logits alone, of a module that gives them as a tuple of summands, each [N, K]."""

    def _prediction(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Prediction:
        return Prediction(sum(output))
