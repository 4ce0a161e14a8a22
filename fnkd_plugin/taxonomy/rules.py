"""Rules that derive the group of a class from its name."""

import re
from collections.abc import Callable

from fnkd_plugin.taxonomy.cifar100 import SUPERCLASSES
from fnkd_plugin.taxonomy.names import normalised

Rule = Callable[[str], str | None]
"""Maps a class name to its group, or to None for a class without near classes."""

_BODIES = re.compile(r'\b(Sedan|Coupe|Convertible|SUV|Hatchback|Wagon|Minivan|Van|Cab|SuperCab)\b')

_SUPERCLASS_OF = {normalised(name): group for group, names in SUPERCLASSES.items() for name in names.split()}


def last_word(name: str) -> str | None:
    """The last word, ``'Albatross'`` of ``'001.Black_footed_Albatross'``; for CUB."""
    return name.split()[-1] if name else None


def make(name: str) -> str | None:
    """The first word, ``'Audi'`` of ``'Audi TT Hatchback 2011'``; for Stanford Cars."""
    return name.split()[0] if name else None


def body_type(name: str) -> str | None:
    """The body type in a name of Stanford Cars, ``'Hatchback'`` of ``'Audi TT Hatchback 2011'``.

    The last one if there are several, ``'Minivan'`` of ``'Ram C/V Cargo Van Minivan 2012'``. All cabs (crew, extended,
    regular, ...) are ``'Cab'``, i.e. pickup trucks. None for names with only a trim level, such as
    ``'Chevrolet HHR SS 2010'``.
    """
    found = _BODIES.findall(name)
    return 'Cab' if found and found[-1] == 'SuperCab' else found[-1] if found else None


def superclass(name: str) -> str:
    """The CIFAR-100 super-class, one of 20.

    Raises:
        KeyError: For any other name.
    """
    return _SUPERCLASS_OF[name]


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (last_word, make, body_type, superclass)}
"""Rules by name; they take names normalised by :func:`normalised`."""
