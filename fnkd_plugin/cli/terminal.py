"""What a person sees of a training: one line of progress; the rest is in the log file."""

import contextlib
import io
import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from mmengine.logging import MMLogger
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


@contextlib.contextmanager
def silent_start() -> Iterator[None]:
    """Nothing of what the frameworks print while a model or a Runner is built.

    MMEngine's logger takes the stream that it finds; :func:`quiet` then gives it the real one.
    """
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # it reports each of five attempts
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


_WARNINGS = 'warning: ', 'error: ', 'critical: '


class _Stream:
    """Standard error for warnings, else standard output, as they are when written: Rich replaces both under a bar."""

    def write(self, text: str) -> None:
        (sys.stderr if text.startswith(_WARNINGS) else sys.stdout).write(text)

    def flush(self) -> None:
        sys.stdout.flush()


class _Sentence(logging.Formatter):
    """The message alone, or ``warning: ...``."""

    def format(self, record: logging.LogRecord) -> str:
        level = '' if record.levelno < logging.WARNING else f'{record.levelname.lower()}: '
        return f'{level}{record.getMessage()}'


def quiet(runner: Any, summary: bool = True) -> None:
    """Show what concerns users in the terminal, see :func:`quiet_logger`; the log file keeps everything."""
    # Configs are shared between machines, and more workers than cores do no harm.
    warnings.filterwarnings('ignore', 'This DataLoader will create')
    # MMEngine prints that it loads a checkpoint.
    load = runner.load_or_resume

    def load_silently() -> None:
        with silent_start():
            load()

    runner.load_or_resume = load_silently
    quiet_logger(runner.logger, summary)


def quiet_logger(logger: logging.Logger | None = None, summary: bool = True) -> None:
    """Show warnings, and with ``summary`` records marked ``shown``, in the terminal; ``None`` is MMEngine's logger."""

    def concerns_users(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return summary and getattr(record, 'shown', False)
        return 'deprecated' not in record.getMessage()  # advice to developers of the framework

    for handler in (logger or MMLogger.get_current_instance()).handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setStream(_Stream())
            handler.setFormatter(_Sentence())
            handler.addFilter(concerns_users)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as ``0:01:07``."""
    return str(timedelta(seconds=round(seconds)))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; columns after the second are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(titles):
        table.add_column(Text(title), justify='right' if place > 1 else 'left')
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


class Bar:
    """A progress bar; where the output is not a terminal, a line at the start and then one per minute.

    Args:
        title: What is done.
        total: Of how many steps.
        done: Steps that are done already, as in a resumed training.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done = title, total, done
        self._resumed = done
        self._began = self._printed = time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn('left')
            text = TextColumn('{task.description}  {task.fields[text]}', markup=False)
            self._progress = Progress(text, *columns, console=console, transient=True)
            self._task = self._progress.add_task(title, total=total, completed=done, text='')
            self._progress.start()

    def advance(self, count: int = 1, text: str = '') -> None:
        """Count steps; ``text`` stands beside the bar."""
        first = self.done == self._resumed
        self.done += count
        if self._progress is not None:
            self._progress.update(self._task, advance=count, text=text)
            return
        now = time.monotonic()
        if first or now - self._printed >= 60:
            self._printed = now
            left = (now - self._began) / (self.done - self._resumed) * (self.total - self.done)
            console.print(f'{self.title}: {self.done}/{self.total}  {text}  {duration(left)} left', markup=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()


def progress(title: str, items: Iterable, total: int) -> Iterator[Any]:
    """``items``, under a :class:`Bar`."""
    bar = Bar(title, total)
    try:
        for item in items:
            yield item
            bar.advance()
    finally:
        bar.close()
