"""Finding the last affine layer of a classifier, and reading its feature and logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import at_least_fp32
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.rng import isolated_rng

_FALLBACK_SIZES = (224, 32, 299, 384)

LayerOutputs = dict[nn.Module, tuple[Tensor, int]]


def _is_affine(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def _same_numbers(a: Any, b: Tensor, version: int) -> bool:
    # The same storage, not equal values: a flattened or permuted view is still the layer's own output. An in-place
    # operation since leaves the storage, but counts up the version.
    return (
        isinstance(a, Tensor)
        and a.numel() == b.numel()
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a._version == version
    )


def _size_hints(model: nn.Module) -> list[int]:
    hints = []
    for module in model.modules():
        cfg = getattr(module, 'pretrained_cfg', None)
        size = cfg.get('input_size', (None,))[-1] if isinstance(cfg, dict) else getattr(module, 'img_size', None)
        size = size[-1] if isinstance(size, (tuple, list)) and size else size
        if isinstance(size, int) and size not in hints:
            hints.append(size)
    return hints


def _input_channels(model: nn.Module) -> int:
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    return first.in_channels if first is not None else 3


def probe(model: nn.Module, forward: Callable[[Tensor], Any], size: int | None = None) -> tuple[Any, LayerOutputs]:
    """Run ``forward`` once on one image in eval mode, leaving the model and the random streams as they were.

    Args:
        model: The model whose affine layers are watched.
        forward: Images [1, C, H, W] to the model's output.
        size: H = W where it is known; otherwise the model's own hints and common sizes are tried.

    Returns:
        The output, and for each affine layer that ran its output and that one's version then.

    Raises:
        SetupError: If no size fits; the first error is its cause.
    """
    outputs: LayerOutputs = {}

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        outputs[module] = output, output._version

    reference = next(model.parameters())
    modes = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    handles = [m.register_forward_hook(record) for m in model.modules() if _is_affine(m)]
    sizes = [size] if size else [*_size_hints(model), *_FALLBACK_SIZES]
    first_error: Exception | None = None
    try:
        # In some models eval() and train() do more than set flags: they gather biases, freeze stages.
        model.eval()
        for side in dict.fromkeys(sizes):
            image = torch.zeros(1, _input_channels(model), side, side, device=reference.device, dtype=reference.dtype)
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
        f'{type(model).__name__}: no image of {", ".join(map(str, dict.fromkeys(sizes)))} pixels a side can be run '
        f'through it in eval mode ({type(first_error).__name__}: {first_error}). Check its config.'
    ) from first_error


def find_last_affine(output: Any, layer_outputs: LayerOutputs) -> nn.Module | None:
    """The affine layer whose own output is the model's output, or None.

    A mean of two heads, a cosine or a scaled output is no layer's own output; then there is no one feature
    norm, and None is returned.
    """
    found = [layer for layer, own in layer_outputs.items() if _same_numbers(output, *own)]
    return found[-1] if found else None


class AffineReader:
    """A permanent forward hook on the last affine layer; reads when asked to, and holds nothing between batches.

    A hook registered per call would break a compiled graph twice, a permanent one does not.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.reading = False
        self._read: Prediction | None = None
        layer.register_forward_hook(self._hook)

    def __deepcopy__(self, memo: dict) -> 'AffineReader':
        # An EMA copy of the model copies the hook with it; one reader serves both.
        return self

    def _hook(self, layer: nn.Linear | nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.reading:
            feature = at_least_fp32(inputs[0]).flatten(1)
            norm = torch.linalg.vector_norm(feature, dim=1)
            self._read = Prediction(output.flatten(1), norm, layer.bias)

    def take(self) -> Prediction | None:
        """The prediction read since the last call, if any."""
        read, self._read = self._read, None
        return read


def class_count(layer: nn.Module) -> int:
    """K of an affine classifier layer."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]
