"""FNKD, or where it is refused, KD."""

from collections.abc import Callable
from typing import TypeVar

from fnkd_plugin.errors import SetupError

Built = TypeVar('Built')
SAID = dict(fnkd='FNKD and KD', kd='KD alone')
"""What taking a method means, for tables."""


def fnkd_or_kd(build: Callable[[str], Built]) -> tuple[Built, str, dict[str, str]]:
    """What ``build(method)`` makes, the method, and ``reason``: why not FNKD.

    Raises:
        SetupError: If KD is refused, too.
    """
    try:
        return build('fnkd'), 'fnkd', {}
    except SetupError as error:
        return build('kd'), 'kd', dict(reason=str(error))
