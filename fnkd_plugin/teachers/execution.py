"""How a teacher's network is run: dtype, memory format, compilation."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from fnkd_plugin.errors import SetupError

_logger = logging.getLogger(__name__)

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
AUTO = 'auto'
MAX_SECONDS = 0.25
"""Maximum seconds for one image in a mode that is tried."""

ExecutionOptions = str | Mapping[str, Any] | None


class ExecutionMode(NamedTuple):
    """The dtype (below fp32 by autocast) and memory format in which a network is run."""

    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @classmethod
    def of_student(cls, images: Tensor) -> 'ExecutionMode':
        """The student's mode, from the active autocast and the batch; without autocast fp32 and contiguous."""
        if not is_autocast(images.device):
            return cls()
        return cls(torch.get_autocast_dtype(images.device.type), is_channels_last(images))

    def __str__(self) -> str:
        return f'{str(self.dtype).removeprefix("torch.")}{", channels last" if self.channels_last else ""}'


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is active."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def is_channels_last(x: Tensor) -> bool:
    """Whether the memory order is channels-last, and not contiguous as well (one channel, or one pixel)."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


_CANDIDATES = [ExecutionMode(dtype, last) for dtype in (torch.float32, torch.bfloat16) for last in (False, True)]


class Execution:
    """Runs a frozen network in the dtype and memory format of its options, by default those of the student.

    The student's are those of its autocast (``--amp``); without autocast fp32 and contiguous, so that fp32 runs stay
    exact. A network whose weights are not fp32 (``model.half()``) runs in their dtype without autocast.

    Args:
        owner: The teacher's name, for errors.
        model: The network.
        forward: Images to the network's output.
        options: A dict of ``dtype`` (``'float32'``, ``'bfloat16'``, ``'float16'``), ``channels_last`` (a bool) and
            ``compile`` (a bool, or ``torch.compile``'s arguments). Or ``'auto'``: times fp32 and bf16 in both memory
            formats on the first batch and keeps the fastest; under deterministic algorithms it does not time, and uses
            the student's.

    Raises:
        SetupError: If an option is unknown or invalid.
    """

    def __init__(
        self, owner: str, model: nn.Module, forward: Callable[[Tensor], Any], options: ExecutionOptions = None
    ) -> None:
        self._auto = options == AUTO
        given = _checked(owner, {} if options is None or self._auto else options)
        compiled = given.get('compile', False)
        arguments = compiled if isinstance(compiled, Mapping) else {}
        self._owner, self._model = owner, model
        self._forward = forward if compiled is False else torch.compile(forward, **arguments)
        self._weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self._dtype, self._channels_last = DTYPES.get(given.get('dtype', '')), given.get('channels_last')
        if self._weights != torch.float32:
            if self._auto or self._dtype:
                raise SetupError(
                    f'{owner}: execution: its weights are {self._weights}, the dtype that it runs in; give no dtype, '
                    'or a model with float32 weights.'
                )
            self._dtype = self._weights
        self._reorder(bool(self._channels_last))

    def __call__(self, images: Tensor, student: ExecutionMode | None = None) -> Any:
        """The output for images [N, C, H, W] in the network's format, without gradient; ``student`` is the default."""
        if self._auto:
            self._decide(images)
        dtype, channels_last = student or ExecutionMode()
        last = channels_last if self._channels_last is None else self._channels_last
        return self._run(images, ExecutionMode(self._dtype or dtype, last))

    def __str__(self) -> str:
        if self._auto:
            return 'the fastest mode on the first batch'
        order = {None: '', False: ', contiguous', True: ', channels last'}[self._channels_last]
        name = "the student's autocast dtype (float32 without)" if self._dtype is None else str(self._dtype)
        return name.removeprefix('torch.') + order

    def _run(self, images: Tensor, mode: ExecutionMode) -> Any:
        if mode.channels_last != self._reordered:
            self._reorder(mode.channels_last)
        images = images.to(self._weights, memory_format=_memory_format(mode.channels_last))
        with torch.no_grad(), torch.autocast(images.device.type, mode.dtype, enabled=mode.dtype != self._weights):
            return self._forward(images)

    @torch.compiler.disable
    def _reorder(self, channels_last: bool) -> None:
        self._reordered = channels_last
        # In place and lossless, so that the format can be changed again.
        self._model.to(memory_format=_memory_format(channels_last))

    @torch.compiler.disable
    def _decide(self, images: Tensor) -> None:
        self._auto = False
        if torch.are_deterministic_algorithms_enabled():
            return
        times: list[float] = []
        for mode in _CANDIDATES:
            times.append(self._seconds(mode, images, min(times, default=math.inf)))
        seconds = torch.tensor(times, device=images.device)  # NCCL cannot reduce CPU tensors
        if distributed.is_available() and distributed.is_initialized():  # a step takes as long as its slowest process
            distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
        self._dtype, self._channels_last = fastest = _CANDIDATES[int(seconds.argmin())]
        shown = ', '.join(f'{mode} {1000 * s:.1f} ms' for mode, s in zip(_CANDIDATES, seconds.tolist(), strict=True))
        _logger.info(f'{self._owner}: runs in {fastest}, the fastest ({shown}).')

    def _seconds(self, mode: ExecutionMode, images: Tensor, best: float) -> float:
        """The fastest of three forwards; infinite if the network fails, or one image takes too long."""
        runs = (self._timed(mode, batch) for batch in (images[:1], images, images, images))
        try:
            # Without hardware support bf16 can be slower than fp32 by orders of magnitude.
            return math.inf if next(runs) > max(MAX_SECONDS, best) else min(runs)
        except RuntimeError:  # a view that the format does not allow, an operation without this dtype
            return math.inf

    def _timed(self, mode: ExecutionMode, images: Tensor) -> float:
        start = time.perf_counter()
        self._run(images, mode)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - start


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _checked(owner: str, options: Any) -> Mapping[str, Any]:
    known = {'dtype': tuple(DTYPES), 'channels_last': (True, False), 'compile': (True, False)}
    for name, value in options.items() if isinstance(options, Mapping) else [('', None)]:
        if value not in known.get(name, ()) and not (name == 'compile' and isinstance(value, Mapping)):
            allowed = ', '.join(f'{key} in {values}' for key, values in known.items())
            raise SetupError(f"{owner}: execution is 'auto' or a dict of {allowed}, but is {options!r}.")
    return options
