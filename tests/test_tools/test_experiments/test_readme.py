"""Generated parts of a text file."""

from pathlib import Path

import pytest


def test_only_what_is_between_the_comments_changes(tmp_path: Path) -> None:
    from experiments.readme import replace_between

    path = tmp_path / 'README.md'
    path.write_text('before <!-- t -->\nold\n<!-- /t --> after <!-- u -->\n<!-- /u -->')
    replace_between(path, 't', 'new | é')
    replace_between(path, 't', 'new | é')
    assert path.read_text() == 'before <!-- t -->\nnew | é\n<!-- /t --> after <!-- u -->\n<!-- /u -->'
    with pytest.raises(ValueError, match='lacks the comments <!-- v --> and <!-- /v -->'):
        replace_between(path, 'v', '')


def test_the_document_is_the_one_with_the_comment(tmp_path: Path) -> None:
    from experiments.readme import document_of

    (tmp_path / 'docs').mkdir()
    (tmp_path / 'README.md').write_text('<!-- t -->')
    (tmp_path / 'docs' / 'more.md').write_text('<!-- u --><!-- t -->')
    assert document_of(tmp_path, 'u').name == 'more.md'
    for name, count in (('t', 2), ('v', 0)):
        with pytest.raises(ValueError, match=f'is in {count} files'):
            document_of(tmp_path, name)
