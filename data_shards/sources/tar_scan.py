"""Members of a tar that a stranger wrote, header by header: nothing is unpacked, followed, decompressed or executed.

The formats are those of POSIX.1-2017 (pax, ustar), of GNU tar and of Version 7. Memory stays small whatever a header
says: payloads are read in pieces, and only those that the caller keeps are held.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from isal.isal_zlib import crc32

from data_shards.errors import DataError

BLOCK = 512
PIECE = 1 << 20  # bytes read at a time
HEAD = 16  # first bytes of every payload, to tell what it is
MAX_NAME = 4096
MAX_EXTENDED = 1 << 20  # bytes of a pax header or a long name
MAX_IN_A_ROW = 8  # extended headers before the member they belong to
COMPRESSED = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ\0": ("xz", "unxz"),
              b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"), b"PK\3\4": ("zip", "unzip")}  # fmt: skip
# What a loader might execute or blow up: such a member spoils its sample and is never opened.
EXECUTABLE = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib", "dill", "so", "dll", "exe", "sh", "py"})
ARCHIVE = frozenset({"gz", "tgz", "bz2", "xz", "zst", "lz4", "zip", "7z", "rar", "tar", "npz"})
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
          b"S": "a sparse file", b"M": "the rest of another volume", b"D": "an incremental dump",
          b"V": "a volume label"}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class Member:
    """A regular file of the tar. `name` is as the tar says (never shown: it may name a patient), `number` counts from
    1, `body` is held only where it was asked for."""

    number: int
    name: str
    offset: int
    size: int
    crc32: int
    head: bytes
    body: bytes | None


@dataclass(frozen=True)
class Flaw:
    """Something in the tar that must not be used. `ends`: what lies behind it cannot be found."""

    number: int
    what: str
    name: str = ""
    ends: bool = False


class _Broken(Exception):
    """The chain of headers ends here."""


def scan_tar(path: Path, keep: Callable[[str, int], bool], sha256: Hash | None = None) -> Iterator[Member | Flaw]:
    """Every regular file of a tar in its order, and a Flaw for whatever else is there; folders are passed over.

    Args:
        keep: (name, bytes) -> whether to hold the payload. It has to refuse what is too large to hold.
        sha256: is fed the whole file, where given.
    Raises: DataError for a file that is no plain tar (compressed, empty, something else) or cannot be read.
    """
    try:
        with path.open("rb", buffering=PIECE) as file:
            reader = _Reader(file, os.fstat(file.fileno()).st_size, sha256)
            _refuse_what_is_no_tar(file, path.name)
            yield from _members(reader, keep)
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error.strerror})", fix="check the file") from None


class _Reader:
    def __init__(self, file: BinaryIO, size: int, sha256: Hash | None) -> None:
        self.file, self.size, self.at, self.sha256 = file, size, 0, sha256

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        self.at += len(data)
        if self.sha256 is not None:
            self.sha256.update(data)
        return data

    def whole(self, count: int) -> bytes:
        """A short payload and its padding. Raises _Broken where the file ends before."""
        if count + -count % BLOCK > self.size - self.at:
            raise _Broken(f"the file ends within it ({self.size - self.at} of {count} bytes)")
        return self.take(count + -count % BLOCK)[:count]

    def payload(self, count: int, keep: bool) -> tuple[int, bytes, bytes | None]:
        """(crc32, first bytes, all bytes if kept). Raises _Broken as `whole`."""
        if count + -count % BLOCK > self.size - self.at:
            raise _Broken(f"the file ends within it ({self.size - self.at} of {count} bytes)")
        crc, head, kept, left = 0, b"", [], count
        while left:
            data = self.take(min(left, PIECE))
            if not data:
                raise _Broken("the file became shorter while it was read")
            crc, left, head = crc32(data, crc), left - len(data), head or data[:HEAD]
            if keep:
                kept.append(data)
        self.take(-count % BLOCK)
        return crc, head, b"".join(kept) if keep else None


def _members(reader: _Reader, keep: Callable[[str, int], bool]) -> Iterator[Member | Flaw]:
    number, name = 0, ""
    try:
        while True:
            number, name = number + 1, ""
            header, extra = _header(reader)
            if header is None:
                _refuse_what_follows(reader)
                return
            name, kind, size = _of(header, extra)
            found = _one(reader, number, name, kind, size, any(k.startswith(b"GNU.sparse.") for k in extra), keep)
            if found is not None:
                yield found
    except _Broken as broken:
        yield Flaw(number, str(broken), name, ends=True)


def _one(
    reader: _Reader, number: int, name: str, kind: bytes, size: int, sparse: bool, keep: Callable[[str, int], bool]
) -> Member | Flaw | None:
    if kind == b"5":
        if size:  # readers disagree whether a folder has a payload: one may see members that another does not
            raise _Broken("it is a folder with a payload")
        unsafe = unsafe_name(name)
        return Flaw(number, unsafe) if unsafe else None
    if kind in (b"1", b"2", b"3", b"4", b"6", b"V"):  # no payload, whatever their size says
        return Flaw(number, f"it is {_KINDS[kind]}", name)
    offset = reader.at
    problem = unsafe_name(name) or unsafe_kind(name)
    if kind not in (b"0", b"\0", b"7"):
        problem = f"it is {_KINDS[kind]}" if kind in _KINDS else "it is of no known type"
    elif sparse:
        problem = "it is a sparse file"
    crc, head, body = reader.payload(size, not problem and keep(name, size))
    return Flaw(number, problem, name) if problem else Member(number, name, offset, size, crc, head, body)


def _header(reader: _Reader) -> tuple[bytes | None, dict[bytes, bytes]]:
    """The next header of a member and what extended headers say of it; None at the end of the archive."""
    extra: dict[bytes, bytes] = {}
    for _ in range(MAX_IN_A_ROW):
        header = reader.take(BLOCK)
        if not header:
            raise _Broken("the file ends without the mark of a tar's end: it is truncated, and members may be missing")
        if len(header) < BLOCK:
            raise _Broken("the file ends within its header")
        if not any(header):
            if extra:
                raise _Broken("an extended header belongs to no member")
            return None, extra
        _check(header)
        kind, size = header[156:157], _number(header[124:136])
        if kind not in (b"x", b"X", b"g", b"L", b"K"):
            return header, extra
        if size > MAX_EXTENDED:
            raise _Broken(f"its extended header claims {size} bytes")
        data = reader.whole(size)
        if kind == b"L":
            extra[b"path"] = data.split(b"\0", 1)[0]
        elif kind in b"xX":
            extra |= _pax(data)
        elif kind == b"g" and any(k in (b"path", b"size") or k.startswith(b"GNU.sparse.") for k in _pax(data)):
            raise _Broken("a global header gives all members one name or size")
    raise _Broken("it has too many extended headers")


def _of(header: bytes, extra: dict[bytes, bytes]) -> tuple[str, bytes, int]:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345] and header[156:157] not in b"SL":
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    name = extra.get(b"path", name)
    size = _number(header[124:136])
    if b"size" in extra:
        if not re.fullmatch(rb"[0-9]{1,18}", extra[b"size"]):
            raise _Broken("its extended header has a size that is no number")
        size = int(extra[b"size"])
    if len(name) > MAX_NAME:
        raise _Broken(f"its name has {len(name)} bytes")
    kind = header[156:157]
    if kind in (b"0", b"\0") and name.endswith(b"/"):
        kind = b"5"  # how Version 7 wrote folders
    return name.decode("utf-8", "surrogateescape"), kind, size


def _check(header: bytes) -> None:
    said = _number(header[148:156])
    blanked = header[:148] + b" " * 8 + header[156:]
    if said != sum(blanked) and said != sum(b - 256 if b > 127 else b for b in blanked):  # old tars summed signed
        raise _Broken("its header does not match its checksum")


def _number(field: bytes) -> int:
    """An octal number, or GNU's base 256 for what is too large. Raises _Broken for a negative number or none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] > 0x80:
        raise _Broken("its header has a negative or absurd number")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise _Broken("its header has a number that is none")
    return int(digits or b"0", 8)


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Records "LENGTH KEY=VALUE\\n" of a pax header. Raises _Broken for a malformed one."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 8)
        length = int(data[at:space]) if space > at and data[at:space].isdigit() else 0
        if space <= at or length <= space - at:  # no length, or one that leads nowhere: reading on would never end
            raise _Broken("its extended header is malformed")
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if at + length > len(data) or not record.endswith(b"\n") or not key or not equals:
            raise _Broken("its extended header is malformed")
        records[key] = value
        at += length
    return records


def unsafe_name(name: str) -> str:
    """What is wrong with a member's name, or nothing."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "its name is absolute" if name else "it has no name"
    if ".." in parts:
        return "its name leads out of the folder (..)"
    return "its name has control characters" if _CONTROL.search(name) else ""


def unsafe_kind(name: str) -> str:
    """Whether the extension is of a kind that a loader would execute or unpack."""
    ext = name.rpartition(".")[2].lower()
    if ext in EXECUTABLE:
        return f"it can hold code to execute (.{ext})"
    return f"it is an archive within the archive (.{ext})" if ext in ARCHIVE else ""


def _refuse_what_follows(reader: _Reader) -> None:
    """Behind the end of the archive only zeros may come."""
    while data := reader.take(PIECE):
        if data.count(0) != len(data):
            raise _Broken("something lies behind the end of the archive (two tars in one file?), it would be lost")


def _refuse_what_is_no_tar(file: BinaryIO, name: str) -> None:
    start = file.peek(BLOCK)[:BLOCK] if hasattr(file, "peek") else b""
    for magic, (kind, tool) in COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{name} is compressed ({kind})",
                "members are read from their places, which a compressed file does not have",
                f"unpack it to a plain .tar first: {tool} {name}; images inside are compressed already",
            )
    if not start:
        raise DataError(f"{name} is empty", "its samples would be missing in silence", "copy it again")
    try:
        if len(start) < BLOCK:
            raise _Broken
        if any(start):
            _check(start)
    except _Broken:
        raise DataError(
            f"{name} is not a tar, or its first header is damaged", "nothing in it can be found", "copy it again"
        ) from None
