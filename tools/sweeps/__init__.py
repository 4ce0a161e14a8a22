"""What ``tools/sweep.py`` tries one by one, each kind in a module of its own.

Each has ``names()``, all that there is; ``attempt(name)``, what became of one, with the key ``failed`` where something
that must hold did not; and ``table(entries)``, the results as Markdown.
"""

from collections.abc import Callable
from typing import TypeVar

from fnkd_plugin.errors import SetupError

Built = TypeVar('Built')
LABELS = dict(fnkd='FNKD and KD', kd='KD alone')
"""The supported methods in tables, by the method that was built."""


def fnkd_or_kd(build: Callable[[str], Built]) -> tuple[Built, str, dict[str, str]]:
    """The result of ``build(method)``, the method, and under ``reason`` why it is not FNKD.

    Raises:
        SetupError: If KD is not possible either.
    """
    try:
        return build('fnkd'), 'fnkd', {}
    except SetupError as error:
        return build('kd'), 'kd', dict(reason=str(error))
