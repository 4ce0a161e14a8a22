"""Downloads from the Hugging Face hub without a network."""

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

_TIMEOUT = 5  # seconds (our choice)


@contextmanager
def cached_if_unreachable() -> Iterator[None]:
    """Where the hub does not answer, use cached files only.

    Its library would repeat each request, for about a minute a model.

    Raises:
        ConnectionError: If the hub does not answer, and a file is not in the cache.
    """
    if constants.HF_HUB_OFFLINE or _answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f'{constants.ENDPOINT} does not answer') from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _answers() -> bool:
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
    except Exception:  # of the library's HTTP client, another one in each of its major versions
        return False
    return True
