"""Images on the device train what images from files train."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import TRANSFORMS

from fnkd_plugin.errors import SetupError
from tests.test_tools.configs import write_configs
from tests.test_tools.processes import forget_run

SIDE, CLASSES = 16, 4


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth images, as photos are."""
    random = np.random.default_rng(0)
    for i in range(20):
        folder = tmp_path / 'photos' / str(i % CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), cv2.resize(small, (40, 40), interpolation=cv2.INTER_CUBIC))
    return tmp_path / 'photos'


def _transforms(*random: dict) -> list[Any]:
    steps = [dict(type='LoadImageFromFile'), *random, dict(type='PackInputs')]
    return [TRANSFORMS.build(step) for step in steps]


def _crop(interpolation: str = 'bicubic', **options: Any) -> list[dict]:
    crop = dict(type='RandomResizedCrop', scale=SIDE, interpolation=interpolation, **options)
    return [crop, dict(type='RandomFlip', prob=0.5, direction='horizontal')]


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_boxes_and_flips_are_those_of_the_transforms(interpolation: str, photos: Path) -> None:
    from experiments.on_device import FromDevice, collate

    transforms = _transforms(*_crop(interpolation, crop_ratio_range=(0.3, 1.0)))
    files = [dict(img_path=str(path), gt_label=0) for path in sorted(photos.rglob('*.png'))]
    np.random.seed(1)
    theirs = torch.stack([Compose(transforms)(dict(file))['inputs'] for file in files]).float()
    ours = FromDevice(transforms, torch.device('cpu'))
    np.random.seed(1)
    found = collate([ours(dict(file)) for file in files])['inputs']
    # Ours reads the pixels beside a box, too, so only its margin may differ by more than rounding.
    inside = (found - theirs)[..., 2:-2, 2:-2].abs()
    assert inside.max() <= 2 and inside.mean() < 0.2
    np.random.seed(2)
    assert (collate([ours(dict(file)) for file in files])['inputs'] - theirs).abs().mean() > 10


def test_what_is_not_supported_is_refused_by_name(photos: Path) -> None:
    from experiments.on_device import FromDevice, collate

    cpu = torch.device('cpu')
    with pytest.raises(SetupError, match='RandomCrop'):
        FromDevice(_transforms(dict(type='RandomCrop', crop_size=8)), cpu)
    with pytest.raises(SetupError, match='nearest'):
        FromDevice(_transforms(*_crop('nearest')), cpu)
    cv2.imwrite(str(photos / 'other.png'), np.zeros((8, 9, 3), np.uint8))
    ours = FromDevice(_transforms(), cpu)
    with pytest.raises(SetupError, match='one size'):
        collate([ours(dict(img_path=str(photos / name), gt_label=0)) for name in ('0/0.png', 'other.png')])


def _weights(job: Any) -> dict[str, torch.Tensor]:
    from experiments.job import run

    checkpoint = run(job)['checkpoint']
    forget_run()
    return torch.load(checkpoint, weights_only=False)['state_dict']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['plain', 'distilled'])
def test_the_weights_after_20_steps_are_those_of_images_from_files(name: str, photos: Path, tmp_path: Path) -> None:
    import timm
    from experiments.job import Job
    from experiments.on_device import _kept

    torch.save(timm.create_model('test_resnet', num_classes=CLASSES).state_dict(), tmp_path / 'teacher.pth')
    plain, _ = write_configs(tmp_path, tmp_path / 'teacher.pth')
    cfg = Config.fromfile(plain)
    data = dict(type='CustomDataset', data_prefix=str(photos))
    # Boxes of the whole image at its own size: nothing is interpolated.
    whole = _crop('bicubic', crop_ratio_range=(1.0, 1.0), aspect_ratio_range=(1.0, 1.0))
    whole[0]['scale'] = 40
    packed = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    for key, steps in (('train_dataloader', [packed[0], *whole, packed[1]]), ('val_dataloader', packed)):
        cfg[key].dataset = dict(**data, pipeline=steps)
    cfg.custom_hooks = []
    cfg.train_cfg.max_epochs = 4  # of 5 steps
    cfg.custom_imports.imports = ['fnkd_plugin', 'tests.test_tools.images']
    cfg.dump(plain)
    jobs = [Job('job', tmp_path / f'{name}.py', tmp_path / str(on), 0, on_device=on) for on in (False, True)]
    theirs = _weights(jobs[0])
    before = set(_kept)
    ours = _weights(jobs[1])
    assert len(set(_kept) - before) == 20
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-5, rtol=1e-5, msg=lambda m, at=key: f'{at}: {m}')
    scores = [np.load(job.predictions)['scores'] for job in jobs]
    np.testing.assert_allclose(*scores, atol=1e-5)
