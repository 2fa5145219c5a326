"""A shard set in a store that fsspec reaches (s3://, https://, hf://, gs://, ...), read by ranges.

Nothing is listed to read a set: its manifest names every file. Credentials and endpoints come from the environment, as
the store's own client documents them (docs/storage.md); no message shows a host, a path or a credential.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from data_shards.errors import DataError
from data_shards.progress import LOG_EVERY_S
from data_shards.shard_write import TAR_BLOCK
from data_shards.storage import LocalFolder

Result = TypeVar("Result")
ATTEMPTS = 5  # of one request; the waits between them are 0.5, 1, 2 and 4 s
FIRST_WAIT_S = 0.5
REQUESTS = 16  # sizes asked for at the same time
RETRIED_STATUS = (408, 425, 429)  # time-out, too early, too many requests; and every 5xx
PERMANENT_ERRNO = (errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS)
DISK_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of this machine, while a file is fetched
# Every file system ever opened. A forked child that let go of its parent's would close the connections in it, and with
# that take them out of the event loop's epoll, which parent and child share: the parent would wait for ever.
_KEPT: list[Any] = []
EXTRAS = {"s3": "s3", "s3a": "s3"}


class RemoteFolder:
    """A URL that fsspec opens, read by ranges. A file system object is made in each process: its event loop does not
    survive a fork.

    Raises DataError where no client for the protocol is installed.
    """

    kind = "ranged"

    def __init__(self, url: str) -> None:
        self.protocol = url.partition("://")[0].lower()
        self._url, _, query = url.partition("?") if self.protocol in ("http", "https") else (url, "", "")
        self._query = f"?{query}" if query else ""  # of a signed address: it goes behind the file's name
        self._opened: tuple[int, Any, str] | None = None
        self._fs()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def whole(self, name: str) -> bytes:
        return self._retried(name, lambda fs, path: fs.cat_file(path))

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        def size(name: str) -> int | None:
            return self._retried(name, lambda fs, path: fs.info(path)["size"])

        def answer(name: str) -> list[tuple[str, int | None]]:
            try:
                return [(name, size(name))]
            except FileNotFoundError:
                return []

        with ThreadPoolExecutor(REQUESTS) as pool:
            return dict(pair for found in pool.map(answer, names) for pair in found)

    def member(self, name: str, offset: int, size: int) -> tuple[bytes, bytes]:
        data = self.read(name, offset - TAR_BLOCK, TAR_BLOCK + size)
        return data[:TAR_BLOCK], data[TAR_BLOCK:]

    def read(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes from `start`, fewer only where the file ends."""
        options = {"cache_type": "none"} if self.protocol == "hf" else {}  # its reads are buffered: no reading ahead

        def once(fs: Any, path: str) -> bytes:
            data = fs.cat_file(path, start=start, end=start + size, **options)
            if len(data) < size and not self._ends_before(name, start + size):
                raise ConnectionError(errno.ECONNRESET, "fewer bytes than asked for")
            return data

        try:
            data = self._retried(name, once)
        except DataError:
            # Stores refuse a range that begins behind the end: then the file is short, and the store is well.
            if self._ends_before(name, start + 1):
                return b""
            raise
        if len(data) > size:
            raise DataError(
                f"{name}: the {self.protocol} store answers a ranged read with more bytes than asked for",
                "each sample would fetch a whole shard",
                'open the shard set with reads="cache" (or VOXCLIP_READS=cache), or serve it with range support',
            )
        return data

    def has_ranges(self) -> bool:
        """Whether the server answers a ranged read with the range. Object stores do; some web servers do not."""
        if self.protocol not in ("http", "https"):
            return True
        return len(self._retried("manifest.json", lambda fs, path: fs.cat_file(path, start=0, end=1))) == 1

    def fetch(self, name: str, to: Path, callback: Any) -> None:
        """The whole file to a local path. Raises as `whole`, and OSError where the local disk is full."""

        def once(fs: Any, path: str) -> None:
            fs.get_file(path, str(to), callback=callback)

        self._retried(name, once)

    def forget(self, name: str) -> bool:
        return False

    def held(self, name: str) -> tuple[Path, Any] | None:
        return None

    @contextmanager
    def fetched(self, name: str) -> Iterator[LocalFolder]:
        with tempfile.TemporaryDirectory(prefix="voxclip-") as folder:
            try:
                self.fetch(name, Path(folder) / name, FetchProgress(name, self.sizes([name]).get(name)))
            except FileNotFoundError:
                raise
            except OSError as error:
                raise DataError(
                    f"{name} does not fit into the temporary folder ({error.strerror})",
                    "it cannot be checked whole",
                    "point TMPDIR to a disk with room for the largest shard",
                ) from None
            yield LocalFolder(folder)

    def names(self) -> list[str] | None:
        if self.protocol in ("http", "https"):
            return None
        found = self._retried("", lambda fs, path: fs.ls(path.rstrip("/"), detail=False))
        return sorted({str(name).rstrip("/").rpartition("/")[2] for name in found} - {""})

    def _ends_before(self, name: str, end: int) -> bool:
        size = self.sizes([name]).get(name, 0)
        return size is not None and size < end

    def _fs(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            from fsspec.core import url_to_fs

            try:
                fs, root = url_to_fs(self._url)
            except ImportError:
                extra = EXTRAS.get(self.protocol)
                raise DataError(
                    f"no client for {self.protocol}:// is installed",
                    "the shards cannot be reached",
                    f"pip install 'voxclip[{extra}]'" if extra else "install the fsspec package for this protocol",
                ) from None
            except ValueError:
                raise DataError(
                    f"{self.protocol}:// is no protocol that fsspec knows, or the rest of the address is malformed",
                    "the shards cannot be reached",
                    "give a folder, or an address that begins with s3://, https:// or hf://",
                ) from None
            except Exception as error:  # some clients connect at once, and show the address with its password
                raise _unreachable(self.protocol, "", error, 1) from None
            _KEPT.append(fs)
            self._opened = os.getpid(), fs, root
        return self._opened[1], self._opened[2]

    def _retried(self, name: str, request: Callable[[Any, str], Result]) -> Result:
        fs, root = self._fs()
        path, wait = f"{root.rstrip('/')}/{name}{self._query}", FIRST_WAIT_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return request(fs, path)
            except Exception as caught:
                error = _hidden_failure(caught)
                if isinstance(error, FileNotFoundError):  # theirs shows the whole address
                    raise FileNotFoundError(errno.ENOENT, "no such file", name) from None
                if isinstance(error, OSError) and error.errno in DISK_ERRNO:
                    raise
                if attempt == ATTEMPTS or not _transient(error):
                    raise _unreachable(self.protocol, name, error, attempt) from None
            time.sleep(wait)
            wait *= 2
        raise AssertionError("unreachable")


class FetchProgress:
    """What fsspec calls while it fetches a file: a line now and then on stderr where it takes long."""

    def __init__(self, name: str, size: int | None) -> None:
        self.name, self.size, self.done = name, size or 0, 0
        self.began = self.last = time.monotonic()

    def set_size(self, size: int | None) -> None:
        self.done = 0  # a new attempt

    def relative_update(self, inc: int = 1) -> None:
        self.absolute_update(self.done + inc)

    def absolute_update(self, value: int) -> None:
        self.done, now = value, time.monotonic()
        if now - self.last > LOG_EVERY_S:
            self.last, rate = now, self.done / (now - self.began)
            done, total, left = self.done / 1e6, self.size / 1e6, (self.size - self.done) / max(rate, 1)
            line = f"fetching {self.name}: {done:.0f}/{total:.0f} MB, {rate / 1e6:.1f} MB/s, {left:.0f} s left"
            print(line, file=sys.stderr)


def _status(error: Exception) -> int | None:
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _hidden_failure(error: Exception) -> Exception:
    """Some clients say "not found" for whatever went wrong: a server that is away is no missing file."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    status = _status(cause)
    if status is not None:
        return error if status in (404, 410) else cause
    network = isinstance(cause, OSError) or type(cause).__module__.partition(".")[0] == "aiohttp"
    return cause if network and not isinstance(cause, FileNotFoundError) else error


def _transient(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return status >= 500 or status in RETRIED_STATUS
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return False
    if isinstance(error, PermissionError | NotImplementedError | TypeError | AttributeError | ValueError):
        return False
    return not (isinstance(error, OSError) and error.errno in PERMANENT_ERRNO)


def _unreachable(protocol: str, name: str, error: Exception, attempts: int) -> DataError:
    status = _status(error)
    if status is None and isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        reason = f"{type(error).__name__}, {errno.errorcode[error.errno]}"
    else:
        reason = f"status {status}" if status else type(error).__name__
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    refused = status in (401, 403) or isinstance(error, PermissionError) or "Credentials" in type(error).__name__
    return DataError(
        f"{name or 'the folder'} cannot be read from the {protocol} store{tried} ({reason})",
        "its samples would be missing from training",
        "set the credentials of the store in the environment (docs/storage.md)"
        if refused
        else "check the address and the network, then start again: a run resumes where it was",
    )
