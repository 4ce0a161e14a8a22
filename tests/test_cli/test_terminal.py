"""Progress in a terminal and elsewhere, and times."""

import io
import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console

from fnkd_plugin.cli import terminal
from tests.test_tools.processes import ROOT


def test_a_piped_bar_prints_at_the_start_and_then_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    output, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(terminal, 'console', Console(file=output))
    monkeypatch.setattr(terminal.time, 'monotonic', lambda: clock[0])
    bar = terminal.Bar('photos', 10)
    for seconds in (10, 20, 59, 75, 80):
        clock[0] = seconds
        bar.advance(text='[red]')
    lines = output.getvalue().splitlines()
    # Of ten steps one took 10 s: 90 s left; four took 75 s: 112.5 s left.
    assert [line.split()[1] for line in lines] == ['1/10', '4/10']
    assert '0:01:30' in lines[0] and '0:01:52' in lines[1]
    assert all('[red]' in line for line in lines)


def test_a_resumed_bar_does_not_count_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    output, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(terminal, 'console', Console(file=output))
    monkeypatch.setattr(terminal.time, 'monotonic', lambda: clock[0])
    bar = terminal.Bar('photos', 60, done=12)
    clock[0] = 2.0
    bar.advance()
    # One step took 2 s, and 47 are left.
    assert '13/60' in output.getvalue() and '0:01:34' in output.getvalue()


def test_warnings_go_to_standard_error_and_results_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger('fnkd_test_streams')
    logger.addHandler(logging.StreamHandler())
    terminal.quiet_logger(logger)
    logger.info('Trained', extra=dict(shown=True))
    logger.info('not shown')
    logger.warning('mind this')
    assert capsys.readouterr() == ('Trained\n', 'warning: mind this\n')


def test_progress_gives_every_item_and_durations_are_readable() -> None:
    assert list(terminal.progress('x', 'abc', 3)) == ['a', 'b', 'c']
    assert terminal.duration(67.4) == '0:01:07'


def test_a_terminal_shows_the_bar_and_nothing_of_the_frameworks() -> None:
    code = (
        "import fnkd_cli; bar = fnkd_cli._load('terminal').Bar('photos', 10); bar.advance(4, 'loss 1.234'); bar.close()"
    )
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, '-c', code], cwd=ROOT, stdout=theirs, stderr=theirs, env={**os.environ, 'TERM': 'xterm'}
    )
    os.close(theirs)
    shown = bytearray()
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    assert child.wait() == 0
    text = shown.decode()
    assert 'photos' in text and 'loss 1.234' in text and '4/10' in text
    assert 'import' not in text and 'Warning' not in text
