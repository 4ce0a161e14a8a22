"""Finds the layer that computes a classifier's logits, and reads its input and output with forward hooks."""

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


class ModuleCall(NamedTuple):
    """A call of a module in :func:`probe`: its output, the output's version counter, and its arguments."""

    output: Tensor
    version: int
    positional: int
    keywords: frozenset[str]


LayerOutputs = dict[nn.Module, ModuleCall]


def _is_affine(module: nn.Module) -> bool:
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or (
        isinstance(module, nn.Conv2d) and (module.kernel_size != (1, 1) or module.groups != 1)
    ):
        return False
    # A subclass with its own forward may not be affine, e.g. ArcFace's normalises feature and weight.
    return type(module).forward is kind.forward or _maps_affinely(module)


def _maps_affinely(layer: nn.Linear | nn.Conv2d) -> bool:
    weight = layer.weight.flatten(1)
    with isolated_rng(), torch.no_grad():
        x = torch.randn(2, weight.shape[1], device=weight.device, dtype=weight.dtype)
        expected = F.linear(x, weight, layer.bias)
        found = layer(x if isinstance(layer, nn.Linear) else x[:, :, None, None])
    return found.numel() == expected.numel() and torch.allclose(found.view_as(expected), expected, 1e-2, 1e-2)


def _is_output_of(a: Any, call: ModuleCall) -> bool:
    # Compares the storage, not values: a flattened or permuted view is still the layer's output. A later in-place
    # operation keeps the storage but increments the version counter.
    return (
        isinstance(a, Tensor)
        and a.numel() == call.output.numel()
        and a.untyped_storage()._cdata == call.output.untyped_storage()._cdata
        and a._version == call.version
    )


def image_size(size: Any) -> ImageSize | None:
    """Parse a model's ``img_size`` or ``input_size``, given as [..., H, W] or a number; None if it is neither."""
    if isinstance(size, (tuple, list)) and size and all(isinstance(side, int) for side in size):
        height, width = size[-2:] if len(size) > 1 else (size[0], size[0])
        return height if height == width else (height, width)
    return size if isinstance(size, int) else None


def _size_hints(model: nn.Module) -> list[ImageSize]:
    hints = []
    for module in model.modules():
        cfg = getattr(module, 'pretrained_cfg', None)
        own = getattr(module, 'img_size', None) or getattr(module, 'image_size', None)  # timm, MMPretrain; transformers
        size = image_size(cfg.get('input_size') if isinstance(cfg, dict) else own)
        if size and size not in hints:
            hints.append(size)
    return hints


def _channel_hints(model: nn.Module) -> list[int]:
    # Of the first convolution. Its input may differ from the image, e.g. after a pixel unshuffle.
    return [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)][:1]


def only_size(model: nn.Module, forward: Callable[[Tensor], Any]) -> ImageSize | None:
    """The image size of a model that accepts no other, e.g. an MLP-Mixer; None if unknown or if other sizes work."""

    def accepts(size: ImageSize) -> bool:
        try:
            probe(model, forward, size)
        except SetupError:
            return False
        return True

    own = next((size for size in _size_hints(model) if accepts(size)), None)
    if own is None:
        return None
    height, width = (own, own) if isinstance(own, int) else own
    return None if accepts((height // 2, width // 2)) or accepts((2 * height, 2 * width)) else own


def probe(
    model: nn.Module, forward: Callable[[Tensor], Any], size: ImageSize | None = None, channels: int | None = None
) -> tuple[Any, LayerOutputs]:
    """Run ``forward`` once on one image in eval mode; the model and the random states are restored.

    Args:
        model: The model whose modules are recorded.
        forward: Images [1, C, H, W] to the model's output.
        size: The image size, if known; otherwise sizes stored in the model and common ones are tried.
        channels: C, tried after that of the first convolution; 3 if None.

    Returns:
        The output, and the call of each submodule whose output is a single vector.

    Raises:
        SetupError: If no size fits; the first error is its cause.
    """
    outputs: LayerOutputs = {}

    def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if isinstance(output, Tensor) and output.numel() == max(output.shape, default=0):
            outputs[module] = ModuleCall(output, output._version, len(args), frozenset(kwargs))

    reference = next(model.parameters(), torch.empty(0))
    modes = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    inside = [module for module in model.modules() if module is not model]
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in inside]
    sizes = list(dict.fromkeys([size] if size else [*_size_hints(model), *_FALLBACK_SIZES]))
    depths = dict.fromkeys([*_channel_hints(model), channels or 3])
    first_error: Exception | None = None
    try:
        # Some models override eval() and train(), e.g. to merge biases or freeze stages.
        model.eval()
        for depth, side in itertools.product(depths, sizes):
            height, width = (side, side) if isinstance(side, int) else side
            image = torch.zeros(1, depth, height, width, device=reference.device, dtype=reference.dtype)
            outputs.clear()
            try:
                with isolated_rng(), torch.no_grad():
                    return forward(image), outputs
            except Exception as error:  # models raise any type of error for a size that does not fit
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
    """The affine layer whose output is the model's output.

    None if there is no such layer, and hence no single feature norm: the mean of two heads, a cosine, scaled logits.
    """
    found = [layer for layer, call in layer_outputs.items() if _is_output_of(output, call)]
    return next((layer for layer in reversed(found) if _is_affine(layer)), None)


def find_last_module(output: Any, layer_outputs: LayerOutputs) -> nn.Module | None:
    """The outermost submodule whose output, a single vector, is the model's output; None if there is none."""
    return next((module for module, call in reversed(layer_outputs.items()) if _is_output_of(output, call)), None)


class Reader(ABC):
    """Reads the predictions of a module inside ``with reader:``, by a forward hook.

    Outside of the context the hook is removed, so that the model can be scripted, quantised or copied. A compiled model
    needs a permanent hook (:meth:`attach`), since registering one would break its graph.

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
        # An EMA copy of the model shares the reader of its hook.
        return self

    def _hook(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        if self._reading:
            self._read = self._prediction(module, args, kwargs, output)

    @abstractmethod
    def _prediction(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Prediction: ...

    def take(self) -> Prediction | None:
        """Return and forget the last prediction; None if there is none."""
        read, self._read = self._read, None
        return read


def without_readers(model: Model) -> Model:
    """A copy of the model without the hooks of attached readers."""
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
    """Reads the logits of a module that is not affine.

    They are the logits of inference (our choice): a head that also takes labels in training (ArcFace, whose margin
    lowers the logit of the true class) is called a second time without them.

    Args:
        module: The module whose output is the model's.
        inference_call: The call of the module in inference.
    """

    def __init__(self, module: nn.Module, inference_call: ModuleCall) -> None:
        super().__init__(module)
        self._positional, self._keywords = inference_call.positional, inference_call.keywords

    def _prediction(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Prediction:
        if len(args) > self._positional or not self._keywords.issuperset(kwargs):
            known = {key: value for key, value in kwargs.items() if key in self._keywords}
            output = module.forward(*args[: self._positional], **known)
        return Prediction(output)


class SumReader(Reader):
    """Reads the logits of a module that returns them as a tuple of summands, each [N, K]."""

    def _prediction(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Prediction:
        return Prediction(sum(output))
