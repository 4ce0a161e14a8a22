"""Near classes A(x) of each class, from the ``groups`` of a config."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.taxonomy.files import read_groups, read_table
from fnkd_plugin.taxonomy.names import ClassNames, class_names, normalised
from fnkd_plugin.taxonomy.rules import RULES, Rule

READY_MADE = {
    'cub': dict(rule='last_word', classes='CUB'),
    'cifar100': dict(rule='superclass', classes='CIFAR100'),
    'cars_make': dict(rule='make', classes='StanfordCars'),
    'cars_body': dict(rule='body_type', classes='StanfordCars'),
}
"""Taxonomies by name (our choice; the paper does not define its rules exactly)."""


@dataclass(frozen=True)
class Taxonomy:
    r"""Near classes of each class.

    Attributes:
        neighbours: For each class the indices of its near classes A, without itself (our choice; the true class
            has the mass :math:`1 - \epsilon_1 - \epsilon_2`). May be empty.
        classes: The names of the classes; None for groups without names.
    """

    neighbours: list[list[int]]
    classes: list[str] | None = None

    def __str__(self) -> str:
        near = [len(indices) for indices in self.neighbours if indices]
        sizes = f', {min(near)} to {max(near)} each' if near else ''
        return f'{len(near)} of {len(self.neighbours)} classes have neighbours{sizes}'

    def check_class_count(self, count: int, owner: str) -> None:
        """Raise a :class:`SetupError` that begins with ``owner`` unless it has as many classes as the groups."""
        if count != len(self.neighbours):
            raise SetupError(
                f'{owner} has {count} classes, but the groups have {len(self.neighbours)}; '
                'give groups of the same classes.'
            )

    def check_classes(self, names: Sequence[str], owner: str) -> None:
        """Check the classes of ``owner`` and their order; for groups without names only their number.

        Raises:
            SetupError: If they differ; with the numbers of classes, or the first differences.
        """
        self.check_class_count(len(names), owner)
        pairs = enumerate(zip(names, self.classes or names, strict=True))
        different = [f'{k}: {a!r}, not {b!r}' for k, (a, b) in pairs if normalised(a) != normalised(b)]
        if different:
            raise SetupError(
                f'{owner}: its classes are not those of the groups ({first_few(different)}); give groups of its own '
                'classes, in its order.'
            )


def groups_of_classes(groups: Any, classes: ClassNames) -> Any:
    """Add ``classes`` to groups that are a rule without classes; other groups are returned unchanged.

    Args:
        groups: As for :func:`taxonomy_of`, or ``dict(rule=...)`` alone. A name such as ``'cub'`` is replaced by its
            rule, so that it also fits a subset of the classes.
        classes: See :func:`~fnkd_plugin.taxonomy.names.class_names`.
    """
    if isinstance(groups, str) and groups in READY_MADE:
        known = READY_MADE[groups]
        return groups if classes == known['classes'] else dict(rule=known['rule'], classes=classes)
    if isinstance(groups, Mapping) and set(groups) == {'rule'}:
        return dict(groups, classes=classes)
    return groups


def taxonomy_of(groups: Any) -> Taxonomy:
    """Build the taxonomy of a config's ``groups``.

    Classes of the same group are near each other. Names are compared by
    :func:`~fnkd_plugin.taxonomy.names.normalised`.

    Args:
        groups: One of

            - ``'cub'`` (shared last word), ``'cifar100'`` (super-classes), ``'cars_make'``, ``'cars_body'``;
            - a file: ``*.json`` of :func:`~fnkd_plugin.taxonomy.files.write_groups`, whose lists may be asymmetric;
              any other has lines ``name<TAB>group`` (or split at the last space). Classes are in the order of the
              file;
            - ``dict(rule=..., classes=...)``: ``rule`` is ``'last_word'``, ``'make'``, ``'body_type'``,
              ``'superclass'``, or a function from a name (with spaces for underscores) to its group, or to None for
              a class without near classes. ``classes``: see :func:`~fnkd_plugin.taxonomy.names.class_names`;
            - a list with one group per class, or with one list of indices per class.

    Raises:
        SetupError: If ``groups`` is invalid; with the first invalid entries.
    """
    if isinstance(groups, Taxonomy):
        return groups
    if isinstance(groups, str) and groups in READY_MADE:
        return _from_rule(**READY_MADE[groups])
    if isinstance(groups, (str, Path)):
        return _from_file(groups)
    if isinstance(groups, Mapping) and set(groups) == {'rule', 'classes'}:
        return _from_rule(**groups)
    if isinstance(groups, Sequence) and len(groups) > 0:
        if all(isinstance(near, (list, tuple)) for near in groups):
            return Taxonomy(_checked(groups))
        if all(isinstance(group, Hashable) and not isinstance(group, tuple) for group in groups):
            return Taxonomy(_members(groups))
    raise SetupError(
        f'taxonomy: groups must be one of {", ".join(READY_MADE)}, a file, dict(rule=..., classes=...), or a list with '
        f'one group or one list of indices per class; but are {str(groups)[:80]}.'
    )


def _from_rule(rule: str | Rule, classes: ClassNames) -> Taxonomy:
    found = RULES.get(rule) if isinstance(rule, str) else rule
    if not callable(found):
        raise SetupError(f'taxonomy: rule must be one of {", ".join(RULES)}, or a function, but is {rule!r}.')
    names = class_names(classes)
    return Taxonomy(_members([_group(found, name) for name in names]), names)


def _group(rule: Rule, name: str) -> str | None:
    try:
        group = rule(normalised(name))
        hash(group)
    except Exception as error:  # a user's function may raise any type of error
        raise SetupError(
            f'taxonomy: the rule {getattr(rule, "__name__", rule)} fails for {name} ({type(error).__name__}: {error}); '
            'it must return a hashable group, e.g. a string, for each class.'
        ) from error
    return group


def _from_file(file: str | Path) -> Taxonomy:
    path = Path(file)
    if not path.is_file():
        raise SetupError(f'taxonomy: {str(file)!r} is not one of {", ".join(READY_MADE)}, and there is no such file.')
    if path.suffix != '.json':
        table = read_table(path)
        return Taxonomy(_members(list(table.values())), list(table))
    lists = read_groups(path)
    positions = {normalised(name): k for k, name in enumerate(lists)}
    unknown = sorted({name for near in lists.values() for name in near if normalised(name) not in positions})
    if unknown:
        raise SetupError(f'taxonomy: {path} lists near classes that it does not define: {first_few(unknown)}.')
    near_indices = [[positions[normalised(name)] for name in near] for near in lists.values()]
    return Taxonomy(_checked(near_indices, list(lists)), list(lists))


def _members(groups: Sequence[Hashable]) -> list[list[int]]:
    """For each class the other members of its group; None is not a group."""
    members: dict[Hashable, list[int]] = {None: []}
    for k, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(k)
    return [[j for j in members[group] if j != k] for k, group in enumerate(groups)]


def _checked(lists: Sequence[Sequence[Any]], names: Sequence[str] | None = None) -> list[list[int]]:
    count = len(lists)
    faulty = [
        f'{names[own] if names else own} ({near})'
        for own, near in enumerate(lists)
        if own in near
        or len(set(near)) < len(near)
        or not all(isinstance(k, Integral) and 0 <= int(k) < count for k in near)
    ]
    if faulty:
        raise SetupError(
            f'taxonomy: near classes are indices of other classes, 0 to {count - 1}, each once; fix the lists of '
            f'{first_few(faulty)}.'
        )
    return [list(map(int, near)) for near in lists]
