"""The pinned environment, on every Python that the package supports."""

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'requirements'))

import environment


def _read(file: Path, python: str) -> list[Requirement]:
    """The lines of a requirements file whose markers hold for this Python."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith('#')]
    found = [Requirement(line) for line in lines]
    return [r for r in found if r.marker is None or r.marker.evaluate({'python_version': python})]


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
@pytest.mark.parametrize('stack', environment.STACKS)
def test_every_requirement_has_one_pin(stack: str, python: str) -> None:
    """Without a pin pip searches, on Python 3.10 without end."""
    pins = [pin.name for pin in _read(environment.constraints(stack), python)]
    assert len(pins) == len(set(pins))
    wanted = {r.name for file in environment.requirements(stack) for r in _read(file, python)}
    assert wanted <= set(pins)
