"""Tables in Markdown, and the generated parts of README.md and docs/, each between two comments of its name."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def document_of(root: Path, name: str) -> Path:
    """The file among README.md and docs/ that contains the generated part of this name.

    Raises:
        ValueError: If no file or several files do.
    """
    comment = f'<!-- {name} -->'
    files = [path for path in (root / 'README.md', *(root / 'docs').glob('*.md')) if comment in path.read_text()]
    if len(files) != 1:
        raise ValueError(f'{comment} is in {len(files)} files of README.md and docs/; it must be in one.')
    return files[0]


def replace_between(path: Path, name: str, text: str) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: If the file lacks the two comments.
    """
    old = path.read_text()
    opening, closing = f'<!-- {name} -->', f'<!-- /{name} -->'
    before, found, rest = old.partition(opening)
    _, closed, after = rest.partition(closing)
    if not (found and closed):
        raise ValueError(f'{path} lacks the comments {opening} and {closing} around the table.')
    path.write_text(f'{before}{opening}\n{text}\n{closing}{after}')


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]], align: str = '') -> str:
    """A Markdown table; ``align`` has ``l`` or ``r`` for each column, by default ``l`` for the first alone."""
    rule = ['---' if side == 'l' else '--:' for side in align or 'l' + 'r' * (len(heads) - 1)]
    return '\n'.join(f'| {" | ".join(map(str, cells))} |' for cells in (heads, rule, *rows))
