"""Where a shard set lies: the protocol of a place with files, and a folder on disk. `remote` has the network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from isal.isal_zlib import crc32

from data_shards.shard_write import TAR_BLOCK

OPEN_FILES = 64  # of a folder and process: shards are many, descriptors few
PIECE = 1 << 18  # stays in the processor's cache between reading and checking
_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z0-9+.-]+)*://", re.I)


class Storage(Protocol):
    """Files by name, read by position. Picklable; what it holds open is opened again in each process."""

    kind: str  # "local", "ranged" or "cache"

    def whole(self, name: str) -> bytes:
        """Raises FileNotFoundError; DataError where a store cannot be reached."""
        ...

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """Bytes of each file, None where a store does not say. A missing file is not in the answer."""
        ...

    def member(self, name: str, offset: int, size: int) -> tuple[bytes, bytes]:
        """A tar header (the 512 bytes before `offset`) and `size` bytes from `offset`; shorter where the file ends.

        Raises FileNotFoundError, or OSError from a disk; DataError where a store cannot be reached."""
        ...

    def forget(self, name: str) -> bool:
        """A member of this file was wrong. Whether it came from a copy, dropped now: the next read is of the original,
        or of a fresh copy."""
        ...

    def held(self, name: str) -> tuple[Path, Any] | None:
        """A local file that may be opened by its path while the second object lives; None where there is none."""
        ...

    def fetched(self, name: str) -> AbstractContextManager[LocalFolder]:
        """A local folder that holds this file while the block runs. Raises as `whole`."""
        ...

    def names(self) -> list[str] | None:
        """All names in the folder, None where the store keeps no listing."""
        ...


def is_url(where: str | os.PathLike[str]) -> bool:
    return isinstance(where, str) and bool(_URL.match(where)) and not where.startswith("file://")


class LocalFolder:
    """A folder on disk."""

    kind = "local"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(os.fspath(folder).removeprefix("file://"))
        self._open = OpenFiles()

    def whole(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        paths = [self.folder / name for name in names]
        return {path.name: path.stat().st_size for path in paths if path.is_file()}

    def member(self, name: str, offset: int, size: int) -> tuple[bytes, bytes]:
        return header_and_payload(self._open.file(self.folder / name).fd, offset, size)

    def forget(self, name: str) -> bool:
        return False

    def held(self, name: str) -> tuple[Path, Any] | None:
        return self.folder / name, None

    @contextmanager
    def fetched(self, name: str) -> Iterator[LocalFolder]:
        yield self

    def names(self) -> list[str] | None:
        return sorted(path.name for path in self.folder.iterdir())


class OpenFiles:
    """At most OPEN_FILES descriptors of a process, the last used kept. Pickled, it is empty."""

    def __init__(self) -> None:
        self._files: dict[Path, _OpenFile] = {}  # the last used last

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": {}}

    def file(self, path: Path) -> _OpenFile:
        """Opened for reading; hold it while its `fd` is read. Raises OSError."""
        file = self._files.pop(path, None) or _OpenFile(path)
        self._files[path] = file
        while len(self._files) > OPEN_FILES:
            self._files.pop(next(iter(list(self._files))), None)
        return file


class _OpenFile:
    """Closed when nobody reads it any more. A forked child reads on with its own descriptor: reads are positioned."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def checksum_in(path: Path, offset: int, size: int) -> tuple[bytes, int]:
    """(tar header, crc32) of a member, read through one small buffer: memory for a whole volume costs more time than
    reading it. Of a file that ends early, the crc32 of what is there. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        header, crc, end = os.pread(fd, TAR_BLOCK, offset - TAR_BLOCK), 0, offset + size
        piece = memoryview(bytearray(min(PIECE, size)))
        while offset < end and (got := os.preadv(fd, [piece[: end - offset]], offset)):
            crc, offset = crc32(piece[:got], crc), offset + got
    finally:
        os.close(fd)
    return header, crc


def header_and_payload(fd: int, offset: int, size: int) -> tuple[bytes, bytes]:
    return os.pread(fd, TAR_BLOCK, offset - TAR_BLOCK), os.pread(fd, size, offset)
