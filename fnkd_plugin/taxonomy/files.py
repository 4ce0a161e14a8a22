"""Taxonomy files: a table of groups, or neighbour lists in JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.taxonomy.names import check_unique, read_text


def read_table(path: Path) -> dict[str, str]:
    """Class name to group, from lines ``name<TAB>group``, or ``name group`` split at the last space.

    Raises:
        SetupError: If it is not text, a line has only one column, or a name is repeated.
    """
    lines = [line.strip() for line in read_text(path, 'taxonomy').splitlines() if line.strip()]
    pairs = [line.rsplit('\t' if '\t' in line else None, 1) for line in lines]
    short = [pair[0] for pair in pairs if len(pair) < 2]
    if short:
        raise SetupError(f'taxonomy: {path} has no group for {first_few(short)}; its lines are: name, tab, group.')
    names = [name.strip() for name, _ in pairs]
    check_unique(names, f'the lines of {path}')
    return {name: group.strip() for name, (_, group) in zip(names, pairs, strict=True)}


def read_groups(path: Path) -> dict[str, list[str]]:
    """Class name to the names of its near classes, from a file of :func:`write_groups`.

    Raises:
        SetupError: If the file has another format.
    """
    text = read_text(path, 'taxonomy')
    try:
        groups = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetupError(f'taxonomy: {path} is not JSON ({error}).') from error
    if not isinstance(groups, dict) or not all(
        isinstance(near, list) and all(isinstance(name, str) for name in near) for near in groups.values()
    ):
        raise SetupError(f'taxonomy: {path} is not one JSON object of class name: [names of its near classes].')
    check_unique(list(groups), f'the keys of {path}')
    return groups


def write_groups(path: str | Path, classes: Sequence[str], neighbours: Sequence[Sequence[int]]) -> None:
    """Write neighbour lists as JSON, class name to names, for ``groups=path``.

    Unlike groups, neighbour lists need not be symmetric.

    Args:
        path: The file, ``*.json``.
        classes: The K names.
        neighbours: For each class the indices of its near classes.
    """
    named = {name: [classes[k] for k in near] for name, near in zip(classes, neighbours, strict=True)}
    Path(path).write_text(json.dumps(named, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
