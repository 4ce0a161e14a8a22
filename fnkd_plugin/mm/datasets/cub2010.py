"""CUB-200 in its 2010 edition."""

from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

from mmpretrain.datasets import CUB, BaseDataset
from mmpretrain.registry import DATASETS

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.mm.datasets.tar_backend import index_of
from fnkd_plugin.taxonomy.names import normalised

_SPLITS = ('train', 'test')
_PARTS = ('all', 'fit', 'tune')


@DATASETS.register_module()
class CUB2010(BaseDataset):
    """CUB-200-2010 in one folder: ``images.tar``, ``classes.txt``, ``train.txt``, ``test.txt``.

    Its 200 classes are those of CUB-200-2011, in the same order. Lines of the lists are ``<path in images/> <label>``.
    To tune without the test set, use ``part='fit'`` and ``part='tune'`` of the training set.

    Args:
        data_root: The folder.
        split: ``'train'`` or ``'test'``.
        part: ``'all'``, ``'fit'`` (four fifths) or ``'tune'`` (every fifth image).
        **kwargs: See MMPretrain's ``BaseDataset``.

    Raises:
        SetupError: If files or images are missing, the archive is truncated, or ``classes.txt`` has other classes.
    """

    METAINFO: ClassVar[dict] = {'classes': CUB.METAINFO['classes']}

    def __init__(self, data_root: str, split: str = 'train', part: str = 'all', **kwargs: object) -> None:
        if split not in _SPLITS or part not in _PARTS:
            raise SetupError(f'CUB2010: split {split!r} must be one of {_SPLITS}, and part {part!r} one of {_PARTS}.')
        root = Path(data_root)
        missing = [n for n in ('images.tar', 'classes.txt', f'{split}.txt') if not (root / n).is_file()]
        if missing:
            raise SetupError(
                f'CUB2010: {root} lacks {", ".join(missing)}. Set the environment variable FNKD_DATA to the folder '
                'that holds cub200_2010, or data_root in the config.'
            )
        _check_classes(root / 'classes.txt')
        self.part = part
        super().__init__(ann_file=f'{split}.txt', data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict with ``img_path`` and ``gt_label`` per image."""
        lines = Path(self.ann_file).read_text().split('\n')
        pairs = [line.rsplit(' ', 1) for line in lines if line]
        archive = f'{self.data_root}/images.tar'
        index = index_of(archive)  # fails here if it is truncated, not within an epoch
        lost = [path for path, _ in pairs if f'images/{path}' not in index]
        if lost:
            raise SetupError(
                f'CUB2010: {archive} lacks {len(lost)} of the images of {self.ann_file} ({first_few(lost)}).'
            )
        images = f'tar://{archive}!images'
        samples = [dict(img_path=f'{images}/{path}', gt_label=int(label)) for path, label in pairs]
        if self.part == 'all':
            return samples
        return [s for i, s in enumerate(samples) if (i % 5 == 0) == (self.part == 'tune')]


def _check_classes(file: Path) -> None:
    found = [normalised(name) for name in file.read_text().split()]
    expected = [normalised(name) for name in CUB2010.METAINFO['classes']]
    if found != expected:
        lines = zip_longest(found, expected)
        bad = [f'line {k} is {a!r}, not {b!r}' for k, (a, b) in enumerate(lines, 1) if a != b]
        raise SetupError(f'CUB2010: {file} does not list the 200 classes of CUB ({first_few(bad, 3)}).')
