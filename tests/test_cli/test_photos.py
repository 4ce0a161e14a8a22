from pathlib import Path

import mmcv
import numpy as np
import pytest
from PIL import Image

from fnkd_plugin.cli.photos import read_photos
from fnkd_plugin.errors import SetupError
from tests.test_cli.photos import COLOURS, folder, photo


def test_labels_are_of_the_sorted_classes(tmp_path: Path) -> None:
    found = read_photos(folder(tmp_path))
    assert found.classes == ['amber', 'blue', 'green']
    assert len(found.train) == 30 and len(found.val) == 12
    assert {(Path(path).parts[1], label) for path, label in found.train + found.val} == set(
        zip(COLOURS, range(3), strict=True)
    )
    assert found.notes == []


def test_a_split_is_fixed_by_names(tmp_path: Path) -> None:
    """Adding photos never moves one from training to validation or back by chance of order; parts do not overlap."""
    root = folder(tmp_path / 'one', train=10, val=0)
    found = read_photos(root)
    assert len(found.val) == 6 and len(found.train) == 24
    assert not {p for p, _ in found.val} & {p for p, _ in found.train}
    again = read_photos(folder(tmp_path / 'two', train=10, val=0))
    assert (again.train, again.val) == (found.train, found.val)


def test_lists_are_mmpretrains(tmp_path: Path) -> None:
    from mmpretrain.datasets import CustomDataset

    root = folder(tmp_path / 'photos')
    photo(root / 'train' / 'blue' / 'with a blank.png', COLOURS['blue'], 5)
    found = read_photos(root)
    found.write_lists(tmp_path / 'lists')
    dataset = CustomDataset(data_root=str(root), ann_file=str(tmp_path / 'lists' / 'train.txt'), classes=found.classes)
    assert [(dataset[i]['img_path'], dataset[i]['gt_label']) for i in range(len(dataset))] == [
        (str(root / path), label) for path, label in found.train
    ]


def test_what_is_odd_is_noted_by_file(tmp_path: Path) -> None:
    root = folder(tmp_path)
    whole = (root / 'train' / 'blue' / '0.jpg').read_bytes()
    (root / 'train' / 'blue' / '0.jpg').write_bytes(whole[: len(whole) // 2])
    (root / 'train' / 'green' / 'text.png').write_text('not a photo')
    (root / 'val' / 'amber' / '0.jpg').write_bytes((root / 'train' / 'amber' / '1.jpg').read_bytes())
    photo(root / 'train' / 'amber' / 'wide.jpg', COLOURS['amber'], 3, size=(400, 40))
    found = read_photos(root)
    notes = '\n'.join(found.notes)
    assert len(found.notes) == 4
    for name in ('train/blue/0.jpg', 'train/green/text.png', 'train/amber/1.jpg and val/amber/0.jpg', '400 x 40'):
        assert name in notes
    assert not any(path in ('train/blue/0.jpg', 'train/green/text.png') for path, _ in found.train)


def test_photos_that_are_kept_can_be_decoded_in_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pillow reads formats that OpenCV does not; both warn of metadata on standard error."""
    root = folder(tmp_path)
    blue = root / 'train' / 'blue'
    pixels = np.random.RandomState(0).rand(48, 64).astype(np.float32)
    Image.fromarray(pixels).save(blue / 'float.tiff')
    coloured = Image.fromarray((255 * pixels).astype(np.uint8))
    coloured.save(blue / 'icon.png', format='ICO')
    coloured.save(blue / 'profile.png', icc_profile=b'x' * 200)
    (blue / '._0.jpg').write_bytes(b'of another file system')
    found = read_photos(root)
    kept = {Path(path).name for path, label in found.train if label == 1}
    assert kept == {*(f'{i}.jpg' for i in range(10)), 'profile.png'}
    assert len(found.notes) == 2 and all('left out' in note for note in found.notes)
    assert all(mmcv.imread(root / path) is not None for path, _ in found.train)
    capfd.readouterr()
    read_photos(root)
    assert not capfd.readouterr().err


def _missing(root: Path) -> None:
    for path in (root / 'val' / 'green').iterdir():
        path.unlink()
    (root / 'val' / 'green').rmdir()


def _surplus(root: Path) -> None:
    photo(root / 'val' / 'red' / '0.jpg', (200, 0, 0), 0)


def _empty(root: Path) -> None:
    (root / 'train' / 'red').mkdir()


def _all_broken(root: Path) -> None:
    for path in (root / 'train' / 'blue').iterdir():
        path.write_bytes(b'')


@pytest.mark.parametrize(
    ('harm', 'named'), [(_missing, 'green'), (_surplus, 'red'), (_empty, 'red'), (_all_broken, 'blue')]
)
def test_classes_that_do_not_fit_are_refused_by_name(harm, named: str, tmp_path: Path) -> None:
    root = folder(tmp_path)
    harm(root)
    with pytest.raises(SetupError, match=named):
        read_photos(root)


@pytest.mark.parametrize('classes', [(), ('blue',)])
def test_fewer_than_two_classes_are_refused(classes: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SetupError, match='at least two'):
        read_photos(folder(tmp_path, classes=classes))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match='nowhere'):
        read_photos(tmp_path / 'nowhere')


def test_files_that_are_not_read_are_noted(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for name in ('train/blue/IMG_1.HEIC', 'val/green/notes.txt', 'train/green/.hidden', 'list.csv'):
        (root / name).write_bytes(b'x')
    (note,) = read_photos(root).notes
    assert '2 files' in note and 'blue/IMG_1.HEIC' in note and 'green/notes.txt' in note


def test_lists_of_other_photos_are_not_overwritten(tmp_path: Path) -> None:
    photos = read_photos(folder(tmp_path / 'one'))
    photos.write_lists(tmp_path / 'lists')
    photos.write_lists(tmp_path / 'lists')  # the same ones may be
    others = read_photos(folder(tmp_path / 'two', train=9))
    with pytest.raises(SetupError, match=r'train\.txt lists other photos'):
        others.write_lists(tmp_path / 'lists')
    with pytest.raises(SetupError, match=r'train\.txt lists other photos'):  # of the same names
        read_photos(folder(tmp_path / 'three')).write_lists(tmp_path / 'lists')
    assert (tmp_path / 'lists' / 'train.txt').read_text().count(str(tmp_path / 'one')) == 30
