"""Small tensors on their way to the host."""

import torch
from torch import Tensor


class HostCopy:
    """A copy in host memory that travels behind the kernels that make the tensor; making it waits for nothing.

    Args:
        tensor: A small tensor on any device. On a CPU it is taken as it is.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._values, self._arrived = tensor, None
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def is_here(self) -> bool:
        """Whether the tensor was in host memory from the first."""
        return self._arrived is None

    def read(self) -> Tensor:
        """The values; waits until they are there, not for what was queued since."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
