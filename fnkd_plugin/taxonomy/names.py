"""Reading and normalising class names."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fnkd_plugin.errors import SetupError, first_few

ClassNames = str | type | Sequence[str]


def normalised(name: str) -> str:
    """Normalise a name for comparison: ``'001.Black_footed_Albatross'`` becomes ``'Black footed Albatross'``.

    Replaces underscores by spaces and removes the number prefix of CUB's folders.
    """
    return ' '.join(re.sub(r'^\d+\.(?=\D)', '', name).replace('_', ' ').split())


def class_names(classes: ClassNames) -> list[str]:
    """See :func:`read_names`; names must be unique.

    Raises:
        SetupError: If there are none, or a name is repeated.
    """
    names = read_names(classes, 'taxonomy')
    check_unique(names, 'the class names')
    return names


def read_names(classes: ClassNames, owner: str) -> list[str]:
    """Class names in order.

    Args:
        classes: A data set class with ``METAINFO``, or its name in MMPretrain's registry; a text file with one name
            per line; or the names.
        owner: Begins the errors.

    Raises:
        SetupError: If there are none, or ``classes`` has another type.
    """
    if isinstance(classes, str) and Path(classes).is_file():
        names = [line.strip() for line in read_text(Path(classes), owner).splitlines() if line.strip()]
    elif isinstance(classes, (str, type)):
        names = _names_of_dataset(classes, owner)
    elif not isinstance(classes, Iterable):
        raise SetupError(f'{owner}: classes must be a data set, a text file or a list of names, but is {classes!r}.')
    else:
        names = [str(name) for name in classes]
    if not names:
        raise SetupError(f'{owner}: {classes!r} has no class names.')
    return names


def read_text(path: Path, owner: str) -> str:
    """Read a text file in UTF-8, whatever the locale; else raise a :class:`SetupError` that begins with ``owner``."""
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise SetupError(f'{owner}: {path} is not in UTF-8 (byte {error.start}); save it in UTF-8.') from error
    except OSError as error:
        raise SetupError(f'{owner}: {path} cannot be read ({error.strerror}).') from error


def check_unique(names: Sequence[str], where: str) -> None:
    """Raise a :class:`SetupError` with the repeated names unless names are unique after normalisation."""
    twice = [name for name, count in Counter(map(normalised, names)).items() if count > 1]
    if twice:
        raise SetupError(f'taxonomy: {where} have {first_few(twice)} more than once; each class needs a unique name.')


def _names_of_dataset(classes: str | type, owner: str) -> list[str]:
    kind: Any = classes
    if isinstance(classes, str):
        try:
            from mmpretrain.registry import DATASETS
        except ImportError as error:
            raise SetupError(
                f'{owner}: {classes!r} is neither a text file nor, without MMPretrain, a registered data set; give a '
                'list of the names.'
            ) from error
        kind = DATASETS.get(classes) if classes.isidentifier() else None
    names = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if not names:
        raise SetupError(
            f'{owner}: {classes!r} is neither a text file nor a registered data set with classes in its METAINFO; '
            'give a list of the names.'
        )
    return list(names)
