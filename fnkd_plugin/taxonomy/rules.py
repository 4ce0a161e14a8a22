"""Rules from a class name to its group, for data sets whose class names contain it."""

import re
from collections.abc import Callable

from fnkd_plugin.taxonomy.cifar100 import SUPERCLASSES
from fnkd_plugin.taxonomy.names import normalised

Rule = Callable[[str], str | None]
"""From a class name to its group; None for a class that is near none."""

_BODIES = re.compile(r'\b(Sedan|Coupe|Convertible|SUV|Hatchback|Wagon|Minivan|Van|Cab|SuperCab)\b')

_SUPERCLASS_OF = {normalised(name): group for group, names in SUPERCLASSES.items() for name in names.split()}


def last_word(name: str) -> str | None:
    """``'Albatross'`` of ``'001.Black_footed_Albatross'``: CUB's rule."""
    return name.split()[-1] if name else None


def make(name: str) -> str | None:
    """The first word, ``'Audi'`` of ``'Audi TT Hatchback 2011'``: Stanford Cars' makes."""
    return name.split()[0] if name else None


def body_type(name: str) -> str | None:
    """The kind of body that a name of Stanford Cars contains, ``'Hatchback'`` of ``'Audi TT Hatchback 2011'``.

    Of several it is the last, ``'Minivan'`` of ``'Ram C/V Cargo Van Minivan 2012'``. All kinds of cabs (crew, extended,
    regular, ...) are ``'Cab'``, the pickup trucks. None for names that contain only a trim level, such as
    ``'Chevrolet HHR SS 2010'``.
    """
    found = _BODIES.findall(name)
    return 'Cab' if found and found[-1] == 'SuperCab' else found[-1] if found else None


def superclass(name: str) -> str:
    """The super-class of a class of CIFAR-100, one of 20.

    Raises:
        KeyError: For any other name.
    """
    return _SUPERCLASS_OF[name]


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (last_word, make, body_type, superclass)}
"""Rules by name. Their arguments are names as :func:`normalised` makes them."""
