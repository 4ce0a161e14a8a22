from collections.abc import Iterator

import pytest

from tests.test_tools.processes import Nursery, nursery


@pytest.fixture(scope='session')
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Runs tools in processes of their own."""
    with nursery(tmp_path_factory.mktemp('tools')) as running:
        yield running
