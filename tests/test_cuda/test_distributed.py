"""NCCL with one process: DDP and FSDP2 learn as a model that is not wrapped."""

import os
import socket
from pathlib import Path
from typing import Any

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fnkd_plugin  # noqa: F401
from tests.helpers import timm_checkpoint
from tests.test_cuda import DEVICE
from tests.test_mm.test_sharded import build_model, train_model

BACKEND = 'nccl'


def _alone(model: nn.Module) -> dict[str, Any]:
    train_model(model, slice(4))
    return model.state_dict()


def _ddp(model: nn.Module) -> dict[str, Any]:
    wrapped = MMDistributedDataParallel(model, device_ids=[0] if DEVICE == 'cuda' else None, broadcast_buffers=False)
    train_model(wrapped, slice(4))
    return wrapped.module.state_dict()


def _fsdp2(model: nn.Module) -> dict[str, Any]:
    mesh = init_device_mesh(DEVICE, (1,))
    for layer in model.backbone.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train_model(model, slice(4))
    return {key: value.full_tensor() for key, value in model.state_dict().items()}


WAYS = dict(alone=_alone, ddp=_ddp, fsdp2=_fsdp2)


def _process(rank: int, port: int, teacher: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group(BACKEND, rank=rank, world_size=1)
    init_default_scope('mmpretrain')
    try:
        for name, train in WAYS.items():
            state = train(build_model(teacher).to(DEVICE))
            torch.save({key: value.cpu() for key, value in state.items()}, Path(folder) / f'{name}.pth')
    finally:
        torch.distributed.destroy_process_group()


def test_wrapped_students_equal_one_that_is_not(tmp_path: Path) -> None:
    teacher = str(timm_checkpoint(tmp_path, 'test_vit', img_size=16))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, teacher, str(tmp_path)), nprocs=1)
    found = {name: torch.load(tmp_path / f'{name}.pth', weights_only=True) for name in WAYS}
    start = build_model(teacher).state_dict()
    assert max((found['alone'][key] - start[key]).abs().max() for key in start) > 1e-3
    for name in ('ddp', 'fsdp2'):
        # Native keys, no teacher.
        assert list(found[name]) == list(start)
        for key, weight in found['alone'].items():
            torch.testing.assert_close(found[name][key], weight, rtol=0, atol=1e-5, msg=f'{name}: {key}')
