"""Reads images from a tar archive without unpacking it."""

import os
import tarfile
from pathlib import Path
from typing import Any

from mmengine.fileio import BaseStorageBackend, register_backend

from fnkd_plugin.errors import SetupError

_PREFIX = 'tar://'


class TarBackend(BaseStorageBackend):
    """MMEngine's file backend for ``tar://ARCHIVE.tar!MEMBER`` paths, uncompressed archives only.

    Any transform that loads files through MMEngine (``LoadImageFromFile``) reads such paths. Each process indexes an
    archive once; reads are positioned, so that workers may share a file descriptor.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._archives: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {}

    def get(self, filepath: str) -> bytes:
        """The bytes of a member.

        Raises:
            FileNotFoundError: If there is no such archive or member.
            SetupError: If the archive is damaged or truncated.
        """
        archive, _, member = str(filepath).removeprefix(_PREFIX).partition('!')
        if archive not in self._archives:
            self._archives[archive] = os.open(archive, os.O_RDONLY), index_of(archive)
        descriptor, index = self._archives[archive]
        if member not in index:
            raise FileNotFoundError(f'{archive} has no member {member!r}.')
        offset, size = index[member]
        return os.pread(descriptor, size, offset)

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """The decoded text of a member; see :meth:`get`."""
        return self.get(filepath).decode(encoding)

    def join_path(self, filepath: str, *filepaths: str) -> str:
        """Parts joined by slashes."""
        return '/'.join([filepath.rstrip('/'), *filepaths])


def index_of(archive: str | Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each file in an archive.

    Raises:
        SetupError: If the archive is damaged or truncated.
    """
    try:
        with tarfile.open(archive, 'r:') as tar:
            index = {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
    except tarfile.TarError as error:
        raise SetupError(f'{archive} is damaged, or not a tar archive ({error}); download it again.') from error
    size, end = os.path.getsize(archive), max((offset + size for offset, size in index.values()), default=0)
    if size < end:
        raise SetupError(f'{archive} is truncated: it has {size} bytes of at least {end}; download it again.')
    return index


register_backend('tar', TarBackend, prefixes='tar', force=True)
