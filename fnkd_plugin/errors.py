"""Errors that end in one sentence: what is wrong, where, and the mend."""

import math
from collections.abc import Sequence


class SetupError(ValueError):
    """Something a config or command line asks for does not fit; said before training starts."""


def check_number(owner: str, name: str, value: object, *, positive: bool = False, below: float = math.inf) -> float:
    """Return ``value`` as a finite float in [0, below), or in (0, below) if ``positive``.

    Raises:
        SetupError: If it is not; the message names the owner, the option, its value and its range.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        if (number > 0 or (number == 0 and not positive)) and number < below:
            return number
    lower = '> 0' if positive else '>= 0'
    upper = '' if below == math.inf else f' and < {below:g}'
    raise SetupError(f'{owner}: {name} must be a finite number {lower}{upper}, but is {value!r}.')


def first_few(entries: Sequence[object], few: int = 5) -> str:
    """The first entries for a message, and how many more there are."""
    more = f' and {len(entries) - few} more' if len(entries) > few else ''
    return ', '.join(map(str, entries[:few])) + more
