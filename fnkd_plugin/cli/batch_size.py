"""A batch that fits into the memory of a GPU."""

from collections.abc import Sequence

import torch
from torch import nn


def fitting_batch_size(batch_size: int, models: Sequence[tuple[nn.Module, int]], device: str = 'cuda') -> int:
    """Halve a batch until each model can be trained with a quarter more images than that.

    The quarter is for what a training has besides, such as a student's teacher (our choice).

    Args:
        batch_size: Images of a batch, at most.
        models: Each with the side length of its images in pixels.
        device: Where they are tried.
    """
    while batch_size > 2 and not all(_fits(model, batch_size * 5 // 4, size, device) for model, size in models):
        batch_size //= 2
    return batch_size


def _fits(model: nn.Module, count: int, size: int, device: str) -> bool:
    try:
        model.to(device)
        with torch.autocast(device, torch.float16, enabled=device == 'cuda'):
            logits = model(torch.zeros(count, 3, size, size, device=device))
        logits.float().sum().backward()
        torch.optim.AdamW(model.parameters()).step()
    except torch.OutOfMemoryError:
        return False
    finally:
        model.cpu().zero_grad()
        torch.cuda.empty_cache()
    return True
