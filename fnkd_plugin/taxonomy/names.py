"""Class names: where they come from, and when two of them are the same."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fnkd_plugin.errors import SetupError, first_few

ClassNames = str | type | Sequence[str]


def normalised(name: str) -> str:
    """``name`` as it is compared: ``'001.Black_footed_Albatross'`` is ``'Black footed Albatross'``.

    Underscores are blanks, and the number and dot that begin the names of CUB's folders go.
    """
    return ' '.join(re.sub(r'^\d+\.(?=\D)', '', name).replace('_', ' ').split())


def class_names(classes: ClassNames) -> list[str]:
    """As :func:`read_names`, each class by a name of its own.

    Raises:
        SetupError: If there are none, or a name stands there twice.
    """
    names = read_names(classes, 'taxonomy')
    check_unique(names, 'the class names')
    return names


def read_names(classes: ClassNames, owner: str) -> list[str]:
    """The names of the classes, in their order.

    Args:
        classes: A data set's type, or its name in MMPretrain's registry, for the names of its ``METAINFO``; a text
            file of one name a line; or the names themselves.
        owner: Begins the errors.

    Raises:
        SetupError: If there are none, or ``classes`` is anything else.
    """
    if isinstance(classes, str) and Path(classes).is_file():
        names = [line.strip() for line in read_text(Path(classes), owner).splitlines() if line.strip()]
    elif isinstance(classes, (str, type)):
        names = _names_of_dataset(classes, owner)
    elif not isinstance(classes, Iterable):
        raise SetupError(f'{owner}: classes must be a data set, a text file or a list of names, but are {classes!r}.')
    else:
        names = [str(name) for name in classes]
    if not names:
        raise SetupError(f'{owner}: {classes!r} holds no class names.')
    return names


def read_text(path: Path, owner: str) -> str:
    """The text of a file in UTF-8, whatever the machine's own encoding.

    Args:
        path: The file.
        owner: Begins the error.

    Raises:
        SetupError: If it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise SetupError(f'{owner}: {path} is not in UTF-8 (byte {error.start}); save it in UTF-8.') from error
    except OSError as error:
        raise SetupError(f'{owner}: {path} cannot be read ({error.strerror}).') from error


def check_unique(names: Sequence[str], where: str) -> None:
    """Refuse names that stand twice.

    Raises:
        SetupError: With the names.
    """
    twice = [name for name, count in Counter(map(normalised, names)).items() if count > 1]
    if twice:
        raise SetupError(f'taxonomy: {where} hold {first_few(twice)} more than once; each class needs its own name.')


def _names_of_dataset(classes: str | type, owner: str) -> list[str]:
    known = isinstance(classes, type) or classes.isidentifier()
    kind = classes if isinstance(classes, type) else _registered(classes, owner) if known else None
    metainfo = getattr(kind, 'METAINFO', None) or {}
    if not metainfo.get('classes'):
        raise SetupError(
            f'{owner}: {classes!r} is neither a text file nor a registered data set whose METAINFO holds classes; '
            'give a list of the names.'
        )
    return list(metainfo['classes'])


def _registered(name: str, owner: str) -> type | None:
    try:
        from mmpretrain.registry import DATASETS
    except ImportError as error:
        raise SetupError(
            f'{owner}: {name!r} is neither a text file nor, without MMPretrain, a registered data set; give a list of '
            'the names.'
        ) from error
    return DATASETS.get(name)
