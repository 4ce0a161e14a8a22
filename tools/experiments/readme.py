"""Generated parts of a text file, each between two comments of its name."""

from pathlib import Path


def replace_between(path: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: If the file lacks the two comments.
    """
    old = path.read_text()
    opening, closing = f'<!-- {name} -->', f'<!-- /{name} -->'
    before, found, rest = old.partition(opening)
    _, closed, after = rest.partition(closing)
    if not (found and closed):
        raise ValueError(f'{path} lacks the comments {opening} and {closing} between which the table goes.')
    path.write_text(f'{before}{opening}\n{text}\n{closing}{after}')
