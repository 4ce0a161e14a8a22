import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from mmpretrain.datasets import CUB
from PIL import Image

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.datasets import CUB2010

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = [f'{i:03}.{name}' for i, name in enumerate(CUB.METAINFO['classes'], 1)]
    (tmp_path / 'classes.txt').write_text('\n'.join(names) + '\n')
    lines = [f'00{i % 2 + 1}/bird {i}.png {i % 2}' for i in range(10)]
    (tmp_path / 'train.txt').write_text('\n'.join(lines) + '\n')
    (tmp_path / 'test.txt').write_text('\n'.join(lines[:3]))
    with tarfile.open(tmp_path / 'images.tar', 'w') as tar:
        for i, line in enumerate(lines):
            file = BytesIO()
            Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(file, 'png')
            member = tarfile.TarInfo('images/' + line.rsplit(' ', 1)[0])
            member.size = len(file.getvalue())
            tar.addfile(member, BytesIO(file.getvalue()))
    return tmp_path


def test_images_and_labels(root: Path) -> None:
    dataset = CUB2010(data_root=str(root), pipeline=PIPELINE)
    assert len(dataset) == 10
    assert tuple(dataset.CLASSES) == tuple(CUB.METAINFO['classes'])
    sample = dataset[7]
    assert sample['inputs'].shape == (3, 4, 6)
    assert (sample['inputs'] == 7).all()
    assert sample['data_samples'].gt_label.item() == 1
    assert len(CUB2010(data_root=str(root), split='test', test_mode=True)) == 3


def test_the_parts_of_the_training_set_are_apart(root: Path) -> None:
    fit, tune = (CUB2010(data_root=str(root), part=part) for part in ('fit', 'tune'))
    paths = [[s['img_path'] for s in (d[i] for i in range(len(d)))] for d in (fit, tune)]
    assert [len(p) for p in paths] == [8, 2]
    assert not set(paths[0]) & set(paths[1])


def test_what_is_missing_is_named(root: Path) -> None:
    (root / 'images.tar').unlink()
    with pytest.raises(SetupError, match=r'lacks images\.tar\. Set the environment variable FNKD_DATA'):
        CUB2010(data_root=str(root))
    with pytest.raises(SetupError, match="split 'val'"):
        CUB2010(data_root=str(root), split='val')


def test_a_folder_of_other_classes_is_refused(root: Path) -> None:
    file = root / 'classes.txt'
    names = file.read_text().split()
    file.write_text('\n'.join([names[1], names[0], *names[2:-1]]))
    first = r"line 1 is 'Laysan Albatross', not 'Black footed Albatross', line 2 .*, line 200 is None, not"
    with pytest.raises(SetupError, match=first):
        CUB2010(data_root=str(root))


@pytest.mark.parametrize('share', [0.0, 0.2, 0.5, 0.7])
def test_a_truncated_archive_is_refused_at_once(root: Path, share: float) -> None:
    archive = root / 'images.tar'
    with tarfile.open(archive) as tar:
        end = max(member.offset_data + member.size for member in tar)
    archive.write_bytes(archive.read_bytes()[: int(share * end)])
    with pytest.raises(SetupError, match=r'images\.tar'):
        CUB2010(data_root=str(root), pipeline=PIPELINE)
