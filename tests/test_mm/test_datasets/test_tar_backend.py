import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from mmengine.fileio import get, get_file_backend, get_text

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.datasets import TarBackend


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w') as tar:
        for name, content in {'x/a.txt': b'first', 'x/b.txt': b'second'}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return path


def test_members_are_read_through_mmengine(archive: Path) -> None:
    assert get(f'tar://{archive}!x/b.txt') == b'second'
    assert get_text(f'tar://{archive}!x/a.txt') == 'first'
    backend = get_file_backend(f'tar://{archive}!x')
    assert isinstance(backend, TarBackend)
    assert backend.join_path(f'tar://{archive}!x/', 'a.txt') == f'tar://{archive}!x/a.txt'


def test_what_is_missing_is_named(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a.tar has no member 'x/c.txt'"):
        TarBackend().get(f'tar://{archive}!x/c.txt')
    with pytest.raises(FileNotFoundError, match=r'none.tar'):
        TarBackend().get(f'tar://{tmp_path}/none.tar!x')


@pytest.mark.parametrize('size', [0, 100, 515, 1539])
def test_a_truncated_archive_is_refused(size: int, archive: Path) -> None:
    """Cut in its first header, and in a file; their contents begin at bytes 512 and 1536."""
    whole = archive.read_bytes()
    archive.write_bytes(whole[:size])
    with pytest.raises(SetupError, match=r'a\.tar'):
        TarBackend().get(f'tar://{archive}!x/a.txt')
