import pytest
import torch
from mmpretrain.registry import MODELS
from torch import nn

from fnkd_plugin.cli.batch_size import fitting_batch_size


class Hungry(nn.Module):
    """Has memory for so many pixels."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.scale, self.pixels = nn.Parameter(torch.ones(())), pixels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images[:, 0].numel() > self.pixels:
            raise torch.OutOfMemoryError('too many')
        return self.scale * images.mean((2, 3))


@pytest.mark.parametrize(
    ('images', 'size', 'expected'), [(80, 8, 64), (79, 8, 32), (80, 16, 16), (10, 8, 8), (0, 8, 2)]
)
def test_a_batch_is_halved_until_a_quarter_more_fits(images: int, size: int, expected: int) -> None:
    """``images`` of 8 pixels a side fit; the model with less memory decides."""
    models = [(Hungry(10**9), 8), (Hungry(images * 64), size)]
    assert fitting_batch_size(64, models, 'cpu') == expected
    assert all(parameter.grad is None for model, _ in models for parameter in model.parameters())


def test_a_student_is_tried() -> None:
    student = MODELS.build(dict(type='mmpretrain.TimmStudent', model='test_resnet', num_classes=3))
    assert fitting_batch_size(4, [(student, 32)], 'cpu') == 4
