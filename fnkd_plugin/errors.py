"""The error of a wrong setup, and checks that raise it; each message names the fault, its place and the fix."""

import math
from collections.abc import Sequence


class SetupError(ValueError):
    """A wrong option of a config or command line, found before training starts."""


def check_number(owner: str, name: str, value: object, *, positive: bool = False, below: float = math.inf) -> float:
    """Return ``value`` as a finite float in [0, below), or in (0, below) if ``positive``.

    Raises:
        SetupError: Otherwise; the message names the owner, the option, its value and its range.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        if (number > 0 or (number == 0 and not positive)) and number < below:
            return number
    lower = '> 0' if positive else '>= 0'
    upper = '' if below == math.inf else f' and < {below:g}'
    raise SetupError(f'{owner}: {name} must be a finite number {lower}{upper}, but is {value!r}.')


def check_temperature(owner: str, value: object) -> float:
    """Return ``value`` as a float in (0, 1e6); above, softened distributions differ by less than fp32 rounding.

    Raises:
        SetupError: See :func:`check_number`.
    """
    return check_number(owner, 'temperature', value, positive=True, below=1e6)


def check_several_classes(owner: str, count: int) -> None:
    """Check that a classifier has at least two classes; the softmax of one logit is always 1.

    Raises:
        SetupError: If ``count`` is below 2.
    """
    if count < 2:
        raise SetupError(
            f'{owner} has {count} class, for which the softmax is always 1; train it with at least two classes.'
        )


def first_few(entries: Sequence[object], few: int = 5) -> str:
    """Format the first ``few`` entries and the number of the others, for a message."""
    more = f' and {len(entries) - few} more' if len(entries) > few else ''
    return ', '.join(map(str, entries[:few])) + more
