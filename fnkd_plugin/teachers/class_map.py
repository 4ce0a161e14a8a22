"""A teacher of other, more or reordered classes."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.taxonomy.names import normalised, read_text
from fnkd_plugin.teachers.class_names import Classes, same_class

_logger = logging.getLogger(__name__)

ClassMapping = str | Path | Sequence[int] | Sequence[str]
BY_NAME = 'by-name'


class ClassMap:
    r"""Which of a teacher's classes are the student's; restricts its predictions to them.

    Student class k is teacher class m(k): :math:`v'_k = v_{m(k)}`, and the same for the origin, so that rescaling
    by the feature norm stays exact. The softmax over the K that are left is the teacher's distribution given that
    the image is one of them.

    Args:
        owner: Whose classes they are; begins the errors.
        count: How many the teacher has.
        classes: Their names, if known.
        mapping: m as indices or names of the teacher, one for each of the student's classes; a text file of such, one
            a line (indices if all are whole numbers); ``'by-name'``, the student's own names; None if the classes are
            the student's.

    Raises:
        SetupError: If an entry is no class of the teacher's, or stands there twice.
    """

    def __init__(
        self, owner: str, count: int, classes: Classes | None = None, mapping: ClassMapping | None = None
    ) -> None:
        if classes is not None and len(classes.names) != count:
            raise SetupError(f'{owner}: it has {count} classes, but classes names {len(classes.names)}.')
        self._owner = owner
        self._all = count
        self._classes = classes
        self._mapping = mapping
        self._index: Tensor | None = None
        if mapping is not None and mapping != BY_NAME:
            self._index = torch.tensor(self._indices(_entries(owner, mapping)))

    @property
    def count(self) -> int:
        """K of the restricted predictions."""
        return self._all if self._index is None else len(self._index)

    @property
    def own(self) -> Classes | None:
        """The names of all the teacher's classes, if known."""
        return self._classes

    def match(self, count: int, classes: Classes | None) -> None:
        """Compare with the student's classes, and find them where the map is ``'by-name'``.

        Args:
            count: How many the student has.
            classes: Their names, if known.

        Raises:
            SetupError: If counts differ, or, where both sides have names and there is no map, names do.
        """
        if self._mapping == BY_NAME:
            self._match_by_name(classes)
        first = self._first_differences(classes)
        if count != self.count:
            known = f' The first that differ: {first}.' if first else ''
            raise SetupError(
                f'Distilling: the student has {count} classes, the teacher {self._owner} has {self.count}; give a '
                f"teacher trained on the student's classes, or say with class_map which of its own they are.{known}"
            )
        if first:
            raise SetupError(
                f"{self._owner}: its classes are not the student's, in their order ({first}); give "
                "class_map='by-name', or classes=..., its own, if it was trained on the student's under other names."
            )

    def restrict(self, prediction: Prediction) -> Prediction:
        """The prediction over the student's classes, [N, K]."""
        if self._index is None:
            return prediction
        logits, norm, origin = prediction
        if self._index.device != logits.device:
            self._index = self._index.to(logits.device)
        return Prediction(logits[:, self._index], norm, None if origin is None else origin[self._index])

    def _first_differences(self, student: Classes | None) -> str:
        if self._mapping is not None or self._classes is None or student is None:
            return ''
        pairs = enumerate(zip_longest(student.names, self._classes.names))
        different = [(k, a, b) for k, (a, b) in pairs if a is None or b is None or not same_class(a, b)]
        return first_few([f'{k}: {a!r}, not {b!r}' for k, a, b in different])

    def _match_by_name(self, student: Classes | None) -> None:
        if student is None:
            raise SetupError(
                f"{self._owner}: class_map='by-name' needs the names of the student's classes; give "
                'Distiller(classes=...), or of a task classes=...: names, a text file, or a data set of MMPretrain.'
            )
        places = self._places()
        by_name = [places[_key(name)] for name in student.names]
        # IDs first: in ImageNet names repeat.
        found = [places[_key(k)] or at for k, at in zip(student.ids, by_name, strict=True)] if student.ids else by_name
        self._index = torch.tensor(self._one_each(student.names, found))
        moved = sum(k != int(m) for k, m in enumerate(self._index))
        _logger.info(
            f"{self._owner}: class_map='by-name' found all {len(self._index)} classes of the student among the "
            f"teacher's {self._all}; {moved} of them have another index."
        )

    def _indices(self, entries: Sequence[int] | Sequence[str]) -> list[int]:
        if all(isinstance(entry, int) for entry in entries):
            found = [[int(entry)] if 0 <= int(entry) < self._all else [] for entry in entries]
        else:
            places = self._places()
            found = [places[_key(str(entry))] for entry in entries]
        return self._one_each(entries, found)

    def _one_each(self, entries: Sequence[int] | Sequence[str], found: Sequence[list[int]]) -> list[int]:
        self._refuse(entries, [not at for at in found], 'no class')
        self._refuse(entries, [len(at) > 1 for at in found], 'several classes')
        indices = [at[0] for at in found]
        counts = Counter(indices)
        self._refuse(entries, [counts[k] > 1 for k in indices], 'the same class')
        return indices

    def _refuse(self, entries: Sequence[int] | Sequence[str], wrong: Sequence[bool], what: str) -> None:
        named = [repr(entry) for entry, is_wrong in zip(entries, wrong, strict=True) if is_wrong]
        if named:
            raise SetupError(
                f"{self._owner}: class_map: {len(named)} of {len(entries)} classes are {what} of the teacher's "
                f'{self._all}: {first_few(named)}; give one of its indices for each, in a list or file.'
            )

    def _places(self) -> dict[str, list[int]]:
        """Where each name and each WordNet ID stands.

        Whole names: one synonym is not enough, for to ImageNet-21k a teddy is a bear and a garment.
        """
        if self._classes is None:
            raise SetupError(
                f"{self._owner}: class_map needs the names of the teacher's classes, which its weights do not tell; "
                'give classes=...: names, a text file, or a data set of MMPretrain.'
            )
        places: dict[str, list[int]] = defaultdict(list)
        for names in (self._classes.names, self._classes.ids or []):
            for k, name in enumerate(names):
                places[_key(name)].append(k)
        return places


def _key(name: str) -> str:
    return normalised(name).lower()


def _entries(owner: str, mapping: ClassMapping) -> Sequence[int] | Sequence[str]:
    entries: Sequence[int] | Sequence[str]
    if not isinstance(mapping, (str, Path)):
        entries = mapping
    elif Path(mapping).is_file():
        lines = [line.strip() for line in read_text(Path(mapping), owner).splitlines() if line.strip()]
        entries = [int(line) for line in lines] if all(line.isdigit() for line in lines) else lines
    else:
        raise SetupError(f"{owner}: class_map is 'by-name', a list or a text file, but there is no file {mapping}.")
    if not entries:
        raise SetupError(f'{owner}: class_map is empty.')
    return entries
