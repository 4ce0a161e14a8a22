"""Rules from a class name to its group, for names that say what the classes are."""

import re
from collections.abc import Callable

from fnkd_plugin.taxonomy.cifar100 import SUPERCLASSES
from fnkd_plugin.taxonomy.names import normalised

Rule = Callable[[str], str | None]

_SUPERCLASS_OF = {normalised(name): group for group, names in SUPERCLASSES.items() for name in names.split()}


def last_word(name: str) -> str | None:
    """``'Albatross'`` of ``'001.Black_footed_Albatross'``: CUB's rule."""
    return name.split()[-1] if name else None


def make(name: str) -> str | None:
    """The first word, ``'Audi'`` of ``'Audi TT Hatchback 2011'``: Stanford Cars' makes."""
    return name.split()[0] if name else None


def body_type(name: str) -> str | None:
    """The word before the year, ``'Hatchback'`` of ``'Audi TT Hatchback 2011'``; None if no year ends the name."""
    found = re.search(r'(\S+) \d{4}$', name)
    return found[1] if found else None


def superclass(name: str) -> str | None:
    """One of CIFAR-100's 20 super-classes; None for a name that is none of its 100 classes."""
    return _SUPERCLASS_OF.get(name)


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (last_word, make, body_type, superclass)}
"""Rules by name. They get names as :func:`normalised` makes them."""
