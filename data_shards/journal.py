"""What a build has finished, in a file that only grows: whole lines survive whatever kills the program."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any


class Journal:
    """JSON lines, each behind its own crc32. Opening drops a torn last line, and everything from a damaged one on.

    entries: what the whole lines say, in order.
    """

    def __init__(self, path: Path) -> None:
        self.entries: list[dict[str, Any]] = []
        good = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    entry = _entry(line)
                    if entry is None:
                        break
                    self.entries.append(entry)
                    good += len(line)
            os.truncate(path, good)
        self._file = open(path, "ab")  # noqa: SIM115 - held while the build runs

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry; it is on the disk when this returns."""
        body = json.dumps(entry, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        self._file.write(f"{zlib.crc32(body):08x} ".encode() + body + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _entry(line: bytes) -> dict[str, Any] | None:
    """The entry of a line, None for one that is not whole."""
    crc, _, body = line.partition(b" ")
    if not body.endswith(b"\n") or crc != f"{zlib.crc32(body[:-1]):08x}".encode():
        return None
    return json.loads(body)


def sync_folder(folder: Path) -> None:
    """Have renames in a folder reach the disk, where the file system can be asked."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse it for folders
    finally:
        os.close(handle)
