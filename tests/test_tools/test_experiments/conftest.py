from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[3] / 'tools'

pytest.importorskip('torchmetrics')
pytest.importorskip('sklearn')


@pytest.fixture(autouse=True)
def _tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a script in tools/."""
    monkeypatch.syspath_prepend(str(TOOLS))
