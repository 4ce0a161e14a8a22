from pathlib import Path

import pytest

from tests.test_tools.processes import Tools


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    """Runs tools in the test's folder."""
    return Tools(tmp_path)
