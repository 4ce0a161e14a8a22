"""Pairs of student and teacher for the benchmarks, and training steps on a batch of random images."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from fnkd_plugin import Distiller
from fnkd_plugin.teachers import PixelFormat
from fnkd_plugin.teachers.execution import DTYPES
from fnkd_plugin.teachers.teacher import ModelTeacher

from ._timing import add_preset

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
CLASSES = 200
_SIZED = ('vit', 'deit', 'swin')  # models that are built for one size of images


class Pair(NamedTuple):
    """Two timm model names, the image size and the batch size."""

    student: str
    teacher: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f'{self.student} <- {self.teacher}, {self.size} px, batch {self.batch}'


# Steps of more than 100 ms on two CPU cores.
PAIRS = (
    Pair('resnet18', 'resnet50', 64, 32),
    Pair('mobilenetv3_small_100', 'resnet18', 96, 32),
    Pair('mobilenetv3_large_100', 'convnext_tiny', 64, 32),
    Pair('resnet50', 'resnet152', 64, 16),
    Pair('vit_small_patch16_224', 'vit_base_patch16_224', 96, 16),
)
_GPU_BATCH = {
    'resnet18': 128,
    'mobilenetv3_small_100': 256,
    'mobilenetv3_large_100': 128,
    'resnet50': 64,
    'vit_small_patch16_224': 128,
}
_GPU_SIZE = 224


class Setting(NamedTuple):
    """Device, dtype and memory format of the networks; by default fp32 and contiguous on a CPU."""

    device: str = 'cpu'
    dtype: str = 'float32'
    channels_last: bool = False

    def autocast(self) -> torch.autocast:
        dtype = DTYPES[self.dtype]
        return torch.autocast(self.device, dtype, enabled=dtype != torch.float32)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options of pairs, device and rounds."""
    add_preset(parser, f'sizes, and type: fp32; on a GPU {_GPU_SIZE} pixels, bf16')
    parser.add_argument('--rounds', type=int, default=rounds)


def chosen(args: argparse.Namespace) -> list[Pair]:
    """The pairs in the sizes of the preset."""
    if args.preset == 'cpu':
        return list(PAIRS)
    return [pair._replace(size=_GPU_SIZE, batch=_GPU_BATCH[pair.student]) for pair in PAIRS]


def dtype_of(args: argparse.Namespace) -> str:
    """The dtype of the preset."""
    return 'bfloat16' if args.preset == 'gpu' else 'float32'


def network(name: str, size: int, setting: Setting) -> nn.Module:
    """A timm model with random weights."""
    options = dict(img_size=size) if name.startswith(_SIZED) else {}
    model = timm.create_model(name, num_classes=CLASSES, **options)
    return model.to(setting.device, memory_format=setting.memory_format)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)


class Batch:
    """Random images and labels, as a data loader yields them."""

    def __init__(self, pair: Pair, setting: Setting) -> None:
        shape, generator = (pair.batch, 3, pair.size, pair.size), torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(pair.batch) % CLASSES
        self._setting = setting
        self._mean = torch.tensor(MEAN, device=setting.device).view(-1, 1, 1)
        self._std = torch.tensor(STD, device=setting.device).view(-1, 1, 1)

    def data(self) -> dict[str, Any]:
        """The data of ``train_step``."""
        return {'inputs': self.images, 'data_samples': [DataSample().set_gt_label(k) for k in self.labels]}

    def tensors(self) -> tuple[Tensor, Tensor]:
        """RGB images, normalised on the device as by the student's data preprocessor, and labels."""
        images = self.images.to(self._setting.device).flip(1).float().sub_(self._mean).div_(self._std)
        return images.contiguous(memory_format=self._setting.memory_format), self.labels.to(self._setting.device)


def student(pair: Pair, setting: Setting) -> Any:
    """The student as a plain MMPretrain model."""
    options = dict(img_size=pair.size) if pair.student.startswith(_SIZED) else {}
    preprocessor = dict(mean=MEAN, std=STD, to_rgb=True)
    cfg = dict(type='TimmStudent', model=pair.student, num_classes=CLASSES, channels_last=setting.channels_last)
    return MODELS.build(dict(cfg, data_preprocessor=preprocessor, **options)).to(setting.device)


def teacher(pair: Pair, setting: Setting, execution: Any = None) -> ModelTeacher:
    """The teacher, with the dtype and memory format of the setting unless ``execution`` is given."""
    if execution is None:
        execution = dict(dtype=setting.dtype, channels_last=setting.channels_last)
    model = network(pair.teacher, pair.size, setting)
    return ModelTeacher(model, model, PixelFormat.of(MEAN, STD, 'rgb'), pair.teacher, pair.size, execution=execution)


def distilled(pair: Pair, setting: Setting, soft_loss: dict, hard_weight: float = 1.0, execution: Any = None) -> Any:
    """The distilled model."""
    head = dict(type='DistillHead', soft_loss=soft_loss, hard_weight=hard_weight)
    return Distiller(student(pair, setting), teacher(pair, setting, execution), head)


def optim_wrapper(model: nn.Module, amp: bool) -> OptimWrapper:
    """MMEngine's optimizer wrapper; under AMP the one of ``--amp``."""
    return AmpOptimWrapper(optimizer=optimizer(model)) if amp else OptimWrapper(optimizer(model))


def train_step(model: Any, batch: Batch, setting: Setting, amp: bool = False) -> Callable[[], Any]:
    """MMEngine's training step."""
    optim = optim_wrapper(model, amp)
    data = batch.data()

    def step() -> None:
        with setting.autocast():
            model.train_step(data, optim)

    return step
