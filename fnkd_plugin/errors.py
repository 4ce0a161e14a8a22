"""The error of a wrong setup, and checks that raise it; each message names the fault, its place and the fix."""

import math
from collections.abc import Sequence


class SetupError(ValueError):
    """A wrong option of a config or command line, found before training starts."""


def check_number(owner: str, name: str, value: object, *, positive: bool = False, below: float = 1e12) -> float:
    """Return ``value`` as a finite float in [0, below), or in (0, below) if ``positive``.

    The largest by default (our choice) keeps products of a few such numbers finite in fp32.

    Raises:
        SetupError: Otherwise; the message names the owner, the option, its value and its range.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        if (number > 0 or (number == 0 and not positive)) and number < below:
            return number
    lower = '> 0' if positive else '>= 0'
    raise SetupError(f'{owner}: {name} must be a finite number {lower} and < {below:g}, but is {value!r}.')


def check_temperature(owner: str, value: object) -> float:
    """Return ``value`` as a float in [1e-6, 1e6).

    Above, softened distributions differ by less than fp32 rounding; far below, logits overflow.

    Raises:
        SetupError: See :func:`check_number`.
    """
    number = check_number(owner, 'temperature', value, positive=True, below=1e6)
    if number < 1e-6:
        raise SetupError(f'{owner}: temperature must be a finite number > 0, at least 1e-06, but is {value!r}.')
    return number


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
    return ', '.join(f'{entry!s:.200}' for entry in entries[:few]) + more
