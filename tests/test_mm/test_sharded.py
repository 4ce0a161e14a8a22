"""Students whose parameters are sharded over two processes (FSDP, both of torch's forms) learn as one process does."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import MMFullyShardedDataParallel
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard

import fnkd_plugin  # noqa: F401
from tests.helpers import timm_checkpoint

STUDENT = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        img_size=16,
        patch_size=8,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
    ),
    head=dict(type='VisionTransformerClsHead', num_classes=4, in_channels=16),
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True, num_classes=4),
)


def build_model(teacher: str) -> nn.Module:
    """A tiny vision transformer that learns by FNKD."""
    torch.manual_seed(0)
    teacher = dict(type='TimmTeacher', model='test_vit', img_size=16, checkpoint=teacher)
    head = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=2.0))
    model = MODELS.build(dict(type='Distiller', student=STUDENT, teacher=teacher, head=head))
    # MMPretrain starts classifiers from zeros where no initialisation draws them, which would hide the soft loss.
    nn.init.normal_(model.head.layers.head.weight, std=0.1)
    return model


def train_model(model: nn.Module, samples: slice) -> None:
    """Three steps on these of four images."""
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = [DataSample().set_gt_label(i) for i in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    preprocessor = getattr(model, 'module', model).data_preprocessor
    for _ in range(3):
        batch = preprocessor(dict(inputs=images[samples], data_samples=labels[samples]), training=True)
        losses = model(**batch, mode='loss')
        optimizer.zero_grad()
        (losses['loss_hard'] + losses['loss_soft']).backward()
        optimizer.step()


def _fsdp(model: nn.Module, rank: int) -> dict[str, Any]:
    wrapped = MMFullyShardedDataParallel(model, device_id=torch.device('cpu'), use_orig_params=True)
    train_model(wrapped, slice(2 * rank, 2 * rank + 2))
    with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT):
        return wrapped.state_dict()


def _fully_shard(model: nn.Module, rank: int) -> dict[str, Any]:
    mesh = init_device_mesh('cpu', (2,))
    for layer in model.backbone.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train_model(model, slice(2 * rank, 2 * rank + 2))
    return {key: value.full_tensor() for key, value in model.state_dict().items()}


def _process(rank: int, port: int, teacher: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    init_default_scope('mmpretrain')
    for train in (_fsdp, _fully_shard):
        state = train(build_model(teacher), rank)
        if rank == 0:
            torch.save(state, Path(folder) / f'{train.__name__}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='on CPUs')
@pytest.mark.slow
def test_sharded_students_equal_one_process(tmp_path: Path) -> None:
    teacher = str(timm_checkpoint(tmp_path, 'test_vit', img_size=16))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, teacher, str(tmp_path)), nprocs=2)
    alone = build_model(teacher)
    start = {key: value.clone() for key, value in alone.state_dict().items()}
    train_model(alone, slice(4))
    expected = alone.state_dict()
    assert max((expected[key] - start[key]).abs().max() for key in start) > 1e-3
    for kind in (_fsdp, _fully_shard):
        state = torch.load(tmp_path / f'{kind.__name__}.pth', weights_only=True)
        # Native keys, no teacher.
        assert list(state) == list(expected)
        for key, weight in expected.items():
            torch.testing.assert_close(state[key], weight, rtol=0, atol=1e-6)
