"""A(x) for a data set whose classes are known by name."""

from collections.abc import Sequence
from typing import Any

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.taxonomy.names import normalised
from fnkd_plugin.taxonomy.taxonomy import taxonomy_of


def neighbours_for(groups: Any, names: Sequence[str], owner: str) -> list[list[int]]:
    """The neighbour lists of :func:`taxonomy_of`, if the groups are of these classes in this order.

    Args:
        groups: See :func:`taxonomy_of`.
        names: The K classes of ``owner``; compared only where the groups were given with names.
        owner: Whose classes they are, for the message.

    Raises:
        SetupError: With the numbers of classes, or the first positions that differ and their names.
    """
    taxonomy = taxonomy_of(groups)
    if len(names) != len(taxonomy.neighbours):
        raise SetupError(f'{owner} has {len(names)} classes, the groups are of {len(taxonomy.neighbours)}.')
    pairs = enumerate(zip(names, taxonomy.classes or names, strict=True))
    different = [f'{k}: {a!r}, not {b!r}' for k, (a, b) in pairs if normalised(a) != normalised(b)]
    if different:
        raise SetupError(
            f'{owner}: its classes are not those of the groups ({first_few(different)}); give groups of its own '
            'classes, in its order.'
        )
    return taxonomy.neighbours
