"""Whole shards of a remote set in a bounded local folder, shared by every process and every run on the machine.

A shard is kept under its sha256, so equal shards are kept once and a wrong one never. It is fetched beside its place
under a lock, hashed, and renamed; the least recently used entries make room. Locks are `flock`: a killed process lets
go of its own, and what it left half-written is removed by the next who needs room.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.remote import FetchProgress, RemoteFolder
from data_shards.storage import LocalFolder, header_and_payload

FOLDER_ENV, LIMIT_ENV, READS_ENV = "VOXCLIP_SHARD_CACHE", "VOXCLIP_SHARD_CACHE_GB", "VOXCLIP_READS"
DEFAULT_FOLDER, DEFAULT_GB = "~/.cache/voxclip/shards", 20.0
SPARE_BYTES = 1 << 30  # of the disk, left to others when a set is judged small enough to be kept
_ENTRY = re.compile(r"[0-9a-f]{64}\.tar")
_PART = re.compile(r"[0-9a-f]{64}-(\d+)\.part")


class OtherBytes(Exception):
    """What was fetched does not have the sha256 in the manifest."""


class Lease:
    """An open entry that nobody removes while this object lives."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd, self.path = fd, path

    def __del__(self) -> None:
        os.close(self.fd)


class ShardCache:
    """The folder. `limit`: bytes of all entries together, those being fetched included."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    @classmethod
    def from_environment(cls) -> ShardCache:
        """$VOXCLIP_SHARD_CACHE (a folder) and $VOXCLIP_SHARD_CACHE_GB (its bound), or their defaults."""
        text = os.environ.get(LIMIT_ENV, "").strip()
        try:
            gigabytes = float(text) if text else DEFAULT_GB
        except ValueError:
            gigabytes = -1.0
        if not 0 < gigabytes < float("inf"):
            raise DataError(f"{LIMIT_ENV} is {text!r}, not a number of gigabytes above 0", fix=f"{LIMIT_ENV}=200")
        folder = Path(os.environ.get(FOLDER_ENV, "").strip() or DEFAULT_FOLDER).expanduser()
        return cls(folder, int(gigabytes * 1e9))

    def has_room_for(self, entries: Iterable[tuple[str, int]]) -> bool:
        """Whether all (sha256, bytes) fit at once: within the bound, and on the disk."""
        entries = set(entries)
        missing = sum(size for sha256, size in entries if not (self.folder / f"{sha256}.tar").exists())
        above = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.is_dir())
        total = sum(size for _, size in entries)
        return total <= self.limit and missing + SPARE_BYTES <= shutil.disk_usage(above).free

    def lease(self, sha256: str) -> Lease | None:
        """The entry, marked as used now; None where it is not kept."""
        path = self.folder / f"{sha256}.tar"
        try:
            fd = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        held = Lease(fd, path)
        _lock(fd, fcntl.LOCK_SH)
        if not _is_at(fd, path):
            return None  # removed between opening and locking
        with suppress(PermissionError):  # somebody else's, readable
            os.utime(path)
        return held

    def fetch(self, sha256: str, size: int, store: RemoteFolder, name: str) -> Lease | None:
        """Fetch `name`, unless another process does so meanwhile. None: no room can be made now.

        Raises FileNotFoundError where the store has no such file, OtherBytes where it has another one; OSError where
        the local disk takes none."""
        path, part = self.folder / f"{sha256}.tar", self.folder / f"{sha256}-{size}.part"
        fd = -1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = _locked(part)
            if kept := self.lease(sha256):
                return kept
            if not self._make_room(size, part):
                return None
            store.fetch(name, part, FetchProgress(name, size))
            if not _is_at(fd, part):  # a client that writes aside and renames
                os.close(fd)
                fd = _locked(part)
            with part.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise OtherBytes
                os.fsync(file.fileno())
            with self._alone():  # whoever counts sees it under one name or the other
                os.replace(part, path)
            _lock(fd, fcntl.LOCK_SH)
            lease, fd = Lease(fd, path), -1
            return lease
        finally:
            if fd >= 0:
                if _is_at(fd, part):
                    part.unlink()
                os.close(fd)

    def drop(self, sha256: str) -> bool:
        """Remove an entry whose bytes went bad. Whether it is gone; not while somebody has it open."""
        try:
            return _remove_if_idle(self.folder / f"{sha256}.tar")
        except OSError:  # somebody else's, or on a disk that fails
            return False

    def _make_room(self, size: int, own: Path) -> bool:
        with self._alone():
            kept, taken = [], size
            for entry in os.scandir(self.folder):
                if entry.name == own.name:
                    continue
                if part := _PART.fullmatch(entry.name):
                    taken += 0 if _remove_if_idle(Path(entry.path)) else int(part[1])
                elif _ENTRY.fullmatch(entry.name):
                    stat = entry.stat()
                    kept.append((stat.st_mtime_ns, entry.name, stat.st_size))
                    taken += stat.st_size
            for _, name, bytes_ in sorted(kept):
                if taken <= self.limit:
                    break
                if _remove_if_idle(self.folder / name):
                    taken -= bytes_
            return taken <= self.limit

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fd = _locked(self.folder / ".lock")
        try:
            yield
        finally:
            os.close(fd)


class CachedFolder:
    """A remote set read through the cache. A shard that the cache cannot take, or whose bytes do not have the hash
    in the manifest, is read by ranges, where each member is checked by itself: only what is damaged is lost.

    Args:
        shards: name -> (bytes, sha256), from the manifest.
    """

    kind = "cache"

    def __init__(self, remote: RemoteFolder, cache: ShardCache, shards: dict[str, tuple[int, str]]) -> None:
        self.remote, self.cache, self.shards = remote, cache, shards
        self._refused: set[str] = set()  # not fetched
        self._leased: set[str] = set()  # read from the cache at least once
        self._dropped: set[str] = set()  # an entry went bad and was removed
        self._by_ranges: set[str] = set()  # the cache is not asked any more
        largest = max((size for size, _ in shards.values()), default=0)
        if largest > cache.limit:
            raise DataError(
                f"the shard cache holds {cache.limit / 1e9:g} GB, the largest shard has {largest / 1e9:g}",
                "it could never be kept",
                f"raise ${LIMIT_ENV}, or read by ranges: {READS_ENV}=ranged",
            )

    def whole(self, name: str) -> bytes:
        return self.remote.whole(name)

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        found = self.remote.sizes(names)
        for name, size in found.items():  # not worth fetching
            if name in self.shards and size not in (None, self.shards[name][0]):
                self._refused.add(name)
        return found

    def names(self) -> list[str] | None:
        return self.remote.names()

    def member(self, name: str, offset: int, size: int) -> tuple[bytes, bytes]:
        lease = self._lease(name)
        if lease is None:
            return self.remote.member(name, offset, size)
        return header_and_payload(lease.fd, offset, size)

    def forget(self, name: str) -> bool:
        """Drop the entry of a shard; where that cannot be done, or did not help, it is read by ranges from now on."""
        if name not in self._leased or name in self._by_ranges:
            return False
        if not self.cache.drop(self.shards[name][1]) or name in self._dropped:
            self._by_ranges.add(name)
        self._dropped.add(name)
        return True

    def held(self, name: str) -> tuple[Path, Any] | None:
        lease = self._lease(name)
        return None if lease is None else (lease.path, lease)

    def fetched(self, name: str) -> AbstractContextManager[LocalFolder]:
        return self.remote.fetched(name)  # what lies in the store, not what was kept of it

    def _lease(self, name: str) -> Lease | None:
        if name in self._by_ranges:
            return None
        size, sha256 = self.shards[name]
        try:
            lease = self.cache.lease(sha256)
            if lease is None and name not in self._refused:
                lease = self.cache.fetch(sha256, size, self.remote, name)
        except OtherBytes:
            self._refused.add(name)
            return None
        except FileNotFoundError:
            raise  # of the store
        except OSError as error:
            raise DataError(
                f"the shard cache cannot take {name} ({error.strerror})",
                "training would stop at every sample of it",
                f"make room on its disk, point ${FOLDER_ENV} to another, or read by ranges: {READS_ENV}=ranged",
            ) from None
        if lease is not None:
            self._leased.add(name)
        return lease


def choose(remote: RemoteFolder, shards: dict[str, tuple[int, str]], reads: str | None) -> RemoteFolder | CachedFolder:
    """How a remote set is read: "ranged", "cache", or "auto" (None: $VOXCLIP_READS, else "auto"): the cache where the
    whole set fits into it, and where the server does not read by ranges. Raises DataError for another word."""
    how = reads or os.environ.get(READS_ENV, "").strip() or "auto"
    if how not in ("auto", "ranged", "cache"):
        raise DataError(f"reads is {how!r}", fix='use "auto", "ranged" or "cache"')
    if how == "ranged":
        return remote
    cache = ShardCache.from_environment()
    if how == "cache" or cache.has_room_for((sha, size) for size, sha in shards.values()) or not remote.has_ranges():
        return CachedFolder(remote, cache, shards)
    return remote


def _lock(fd: int, how: int) -> None:
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        raise DataError(
            f"the file system of the shard cache has no file locks ({error.strerror})",
            "two processes would write over each other",
            f"point ${FOLDER_ENV} to a local disk",
        ) from None


def _locked(path: Path) -> int:
    """A file, made if need be, locked by this process alone; waits while another one holds it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        _lock(fd, fcntl.LOCK_EX)
        if _is_at(fd, path):
            return fd
        os.close(fd)  # renamed or removed by the one before us


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_if_idle(path: Path) -> bool:
    """Remove a file that no process holds locked."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
