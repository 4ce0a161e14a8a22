"""Mapping of a teacher's classes to the student's."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnkd_plugin.errors import SetupError, check_several_classes, first_few
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.taxonomy.names import read_text
from fnkd_plugin.teachers.class_names import Classes, differences, name_key

_logger = logging.getLogger(__name__)

ClassMapping = str | Path | Sequence[int] | Sequence[str]


class ClassMap:
    r"""Restricts a teacher's predictions to the student's classes.

    Student class k is teacher class m(k): :math:`v'_k = v_{m(k)}`, and likewise for the origin, so that rescaling by
    the feature norm stays exact. The softmax over the remaining K classes is the teacher's distribution conditioned on
    them.

    Args:
        owner: The teacher's name, for errors.
        count: The teacher's number of classes.
        classes: Their names, if known; kept as :attr:`own`.
        mapping: m: for each student class the teacher's index or name, as a list or a text file with one per line
            (indices if all are integers); ``'by-name'``: matched by the student's class names; None: the identity.

    Raises:
        SetupError: If an entry is not a class of the teacher, or two entries are the same class.
    """

    def __init__(
        self, owner: str, count: int, classes: Classes | None = None, mapping: ClassMapping | None = None
    ) -> None:
        if classes is not None and len(classes.names) != count:
            raise SetupError(f'{owner}: it has {count} classes, but classes has {len(classes.names)} names.')
        self._owner = owner
        self._all = count
        self.own = classes
        self._mapped = mapping is not None
        self._by_name = isinstance(mapping, str) and mapping == 'by-name'
        self._index: Tensor | None = None
        if mapping is not None and not self._by_name:
            self._index = self._index_of(_entries(owner, mapping))

    @property
    def count(self) -> int:
        """The number of classes of the restricted predictions."""
        return self._all if self._index is None else len(self._index)

    def match(self, count: int, classes: Classes | None) -> None:
        """Check the student's classes, and resolve a ``'by-name'`` map.

        Args:
            count: The student's number of classes.
            classes: Their names, if known.

        Raises:
            SetupError: If the numbers differ, there is only one class, or, without a map, the names differ.
        """
        if self._by_name:
            self._match_by_name(classes)
        different = self._first_differences(classes)
        if count != self.count:
            known = f' The first that differ: {different}.' if different else ''
            raise SetupError(
                f'Distilling: the student has {count} classes, the teacher {self._owner} has {self.count}; give a '
                f"teacher trained on the student's classes, or map its classes with class_map.{known}"
            )
        if different:
            raise SetupError(
                f"{self._owner}: its classes are not the student's, in their order ({different}); give "
                "class_map='by-name', or, if they are the same under other names, the teacher's with classes=..."
            )
        check_several_classes(f'Distilling: the teacher {self._owner}', count)

    def restrict(self, prediction: Prediction) -> Prediction:
        """The prediction over the student's classes, [N, K]."""
        if self._index is None:
            return prediction
        logits, norm, origin = prediction
        if self._index.device != logits.device:
            self._index = self._index.to(logits.device)
        return Prediction(logits[:, self._index], norm, None if origin is None else origin[self._index])

    def _first_differences(self, student: Classes | None) -> str:
        teacher = self.own
        if self._mapped or teacher is None or student is None:
            return ''
        by_id = bool(teacher.ids and student.ids)  # unique, unlike names
        found = differences(*((classes.ids if by_id else classes.names) or [] for classes in (student, teacher)))
        named = [dict(enumerate(classes.names)) for classes in (student, teacher)]
        return first_few([f'{k}: {named[0].get(k)!r}, not {named[1].get(k)!r}' for k in found])

    def _match_by_name(self, student: Classes | None) -> None:
        if student is None:
            raise SetupError(
                f"{self._owner}: class_map='by-name' needs the names of the student's classes; give "
                'them to Distiller or the task with classes=...: names, a text file, or a data set of MMPretrain.'
            )
        self._index = self._index_of(student.names, student.ids)
        moved = sum(k != int(m) for k, m in enumerate(self._index))
        _logger.info(
            f"{self._owner}: class_map='by-name' found all {len(self._index)} student classes among the teacher's "
            f'{self._all}; {moved} have a different index.'
        )

    def _index_of(self, entries: Sequence[int] | Sequence[str], ids: Sequence[str] | None = None) -> Tensor:
        """Indices m from indices, or from names; WordNet IDs take precedence, since names repeat in ImageNet."""
        if isinstance(entries[0], int):
            found = [[int(k)] if 0 <= int(k) < self._all else [] for k in entries]
        else:
            exact, loose = self._indices_by_name()
            found = [exact[str(name)] or loose[name_key(str(name))] for name in entries]
            found = [exact[key] or at for key, at in zip(ids, found, strict=True)] if ids else found
        counts = Counter(k for at in found for k in at)
        for what, faulty in {
            'are not among': [not at for at in found],
            'match several of': [len(at) > 1 for at in found],
            'match the same of': [len(at) == 1 and counts[at[0]] > 1 for at in found],
        }.items():
            wrong = [repr(entry) for entry, is_wrong in zip(entries, faulty, strict=True) if is_wrong]
            if wrong:
                raise SetupError(
                    f"{self._owner}: class_map: {len(wrong)} of {len(entries)} classes {what} the teacher's "
                    f'{self._all}: {first_few(wrong)}; give one teacher index per class in a list or file.'
                )
        return torch.tensor([at[0] for at in found])

    def _indices_by_name(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Indices by complete name or WordNet ID, exactly and by :func:`name_key`.

        Not by single synonyms, which are ambiguous: "teddy" in ImageNet-21k is both a bear and a garment.
        """
        if self.own is None:
            raise SetupError(
                f"{self._owner}: class_map needs the names of the teacher's classes, which its weights lack; "
                'give classes=...: names, a text file, or a data set of MMPretrain.'
            )
        exact: dict[str, list[int]] = defaultdict(list)
        loose: dict[str, list[int]] = defaultdict(list)
        for names in (self.own.names, self.own.ids or []):
            for k, name in enumerate(names):
                exact[name].append(k)
                loose[name_key(name)].append(k)
        return exact, loose


def _entries(owner: str, mapping: ClassMapping) -> list[int] | list[str]:
    if isinstance(mapping, (str, Path)):
        if not Path(mapping).is_file():
            raise SetupError(f"{owner}: class_map is 'by-name', a list or a text file; there is no file {mapping}.")
        lines = [line.strip() for line in read_text(Path(mapping), owner).splitlines() if line.strip()]
        entries: list[Any] = [int(line) for line in lines] if all(line.isdecimal() for line in lines) else lines
    else:
        # A dict would be taken for the list of its keys.
        entries = [None] if isinstance(mapping, Mapping) or not isinstance(mapping, Iterable) else list(mapping)
    if not entries:
        raise SetupError(f'{owner}: class_map is empty.')
    indices = all(isinstance(entry, Integral) and not isinstance(entry, bool) for entry in entries)
    if not indices and not all(isinstance(entry, str) for entry in entries):
        raise SetupError(f'{owner}: class_map must have only indices or only names, but is {mapping!r:.200}.')
    return [int(entry) for entry in entries] if indices else entries
