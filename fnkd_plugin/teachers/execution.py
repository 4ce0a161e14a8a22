"""How a teacher's network is run: arithmetic, memory order, compiled or not."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fnkd_plugin.errors import SetupError

_logger = logging.getLogger(__name__)

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
AUTO = 'auto'
TRIAL_SECONDS = 1.0

ExecutionOptions = str | Mapping[str, Any] | None
# dtype, channels_last
_Way = tuple[str, bool]
_TRIED: tuple[_Way, ...] = (('float32', False), ('float32', True), ('bfloat16', False), ('bfloat16', True))


class Execution:
    """A frozen network, run in one way whatever the student's: autocast or not, in which memory order, compiled or not.

    Without options it is run as its own framework runs it, in fp32: on CPUs bf16 can be many times slower, and
    channels-last memory order, though most often faster, rounds otherwise.

    Args:
        owner: Whose it is; begins the errors.
        model: The network.
        forward: Images to the network's output.
        options: ``'auto'``: on the first batch fp32 and bf16 are timed in both memory orders, for a second in all, and
            the fastest kept (not under deterministic algorithms, where nothing is left to timing). Or a dict of
            ``dtype`` (``'float32'``, or ``'bfloat16'`` or ``'float16'`` for autocast), ``channels_last`` (a bool) and
            ``compile`` (a bool, or a dict of ``torch.compile``'s arguments). None: the defaults.

    Raises:
        SetupError: If an option is unknown or none of its values is given.
    """

    def __init__(
        self, owner: str, model: nn.Module, forward: Callable[[Tensor], Any], options: ExecutionOptions = None
    ) -> None:
        self._owner = owner
        self._model = model
        self._undecided = options == AUTO
        given = _checked(owner, {} if options is None or self._undecided else options)
        compiled = given.get('compile', False)
        arguments = dict(compiled) if isinstance(compiled, Mapping) else {}
        self._forward = torch.compile(forward, **arguments) if compiled is not False else forward
        self._set((given.get('dtype', 'float32'), given.get('channels_last', False)))

    @property
    def way(self) -> _Way:
        """``dtype`` and ``channels_last``."""
        return self._way

    def __call__(self, images: Tensor) -> Any:
        """The network's output of images in its format [N, C, H, W], without gradient."""
        if self._undecided:
            self._decide(images)
        return self._run(images)

    def _run(self, images: Tensor) -> Any:
        images = images.contiguous(memory_format=self._memory_format)
        dtype = DTYPES[self._way[0]]
        with torch.no_grad(), torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return self._forward(images)

    def _set(self, way: _Way) -> None:
        self._way = way
        self._memory_format = torch.channels_last if way[1] else torch.contiguous_format
        # In place and without loss, so that another way can be set later.
        self._model.to(memory_format=self._memory_format)

    @torch.compiler.disable
    def _decide(self, images: Tensor) -> None:
        self._undecided = False
        if torch.are_deterministic_algorithms_enabled():
            return
        best = float('inf')
        found = []
        for way in _TRIED:
            found.append(self._seconds(way, images, best))
            best = min(best, found[-1])
        # On the device: NCCL reduces no tensor of the host's.
        seconds = torch.tensor(found, dtype=torch.float32, device=images.device)
        if distributed.is_available() and distributed.is_initialized():  # a step takes as long as its slowest process
            distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
        fastest = _TRIED[int(seconds.argmin())]
        self._set(fastest)
        shown = ', '.join(f'{_name(way)} {1000 * s:.1f} ms' for way, s in zip(_TRIED, seconds.tolist(), strict=True))
        _logger.info(f'{self._owner}: runs in {_name(fastest)}, the fastest ({shown}).')

    def _seconds(self, way: _Way, images: Tensor, best: float) -> float:
        """Of one forward, the fastest in this way's share of the time; infinite where it cannot be, or is hopeless."""
        self._set(way)
        share = TRIAL_SECONDS / len(_TRIED)
        try:
            # One image first: without the instructions for it, bf16 can take seconds where a batch in fp32 takes one.
            if self._timed(images[:1]) > max(share, best):
                return float('inf')
            times = [self._timed(images)]
            while sum(times) < share:
                times.append(self._timed(images))
        except RuntimeError:  # a view that is none in this order, an operation without this dtype
            return float('inf')
        return min(times)

    def _timed(self, images: Tensor) -> float:
        start = time.perf_counter()
        self._run(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - start


def _name(way: _Way) -> str:
    return f'{way[0]}{", channels last" if way[1] else ""}'


def _checked(owner: str, options: Any) -> dict[str, Any]:
    known = {'dtype': tuple(DTYPES), 'channels_last': (True, False), 'compile': (True, False)}
    if not isinstance(options, Mapping) or not set(options) <= set(known):
        raise SetupError(
            f"{owner}: execution is 'auto' or a dict of {', '.join(known)}, but is {options!r}; such as "
            "dict(dtype='bfloat16', channels_last=True)."
        )
    for name, value in options.items():
        if value not in known[name] and not (name == 'compile' and isinstance(value, Mapping)):
            raise SetupError(f'{owner}: execution.{name} is one of {known[name]}, but is {value!r}.')
    return dict(options)
