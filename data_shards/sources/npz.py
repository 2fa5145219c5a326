"""Arrays inside .npz archives, one at a time: a set of 13 GB is read item by item, never unpacked whole."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_shards.errors import DataError

DAMAGED = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile)


def read_array(path: str | os.PathLike[str], item: tuple[str, int] | None = None) -> np.ndarray:
    """The array of a .npy, or of a .npz that holds one; with `item` (name, position) one entry of a named array.

    Items are cheapest in rising order: the archive is read forward and stays open for the next one.
    Raises: DataError for a damaged file, pickled objects, several arrays, no such item.
    """
    place = Path(path)
    try:
        if item is not None:
            return _items(str(place), item[0], place.stat().st_mtime_ns).read(item[1])
        found = np.load(place, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found as archive:
            if len(archive.files) != 1:
                raise DataError(
                    f"the .npz holds {len(archive.files)} arrays",
                    "the wrong one would be read",
                    "keep one array a file",
                )
            return archive[archive.files[0]]
    except DataError:
        raise
    except DAMAGED as error:
        _items.cache_clear()
        raise DataError(
            f"the array cannot be read ({type(error).__name__})",
            "a damaged file may decode to half a patient",
            "copy or export it again",
        ) from None


@lru_cache(maxsize=4)
def _items(path: str, name: str, mtime: int) -> _Items:
    return _Items(path, name)


class _Items:
    """Entries of one array of an archive along its first axis, read forward."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.member = path, f"{name}.npy"
        self._file: IO[bytes] | None = None
        self._rewind()

    def _rewind(self) -> None:
        if self._file is not None:
            self._file.close()
        try:
            self._file = zipfile.ZipFile(self.path).open(self.member)  # noqa: SIM115 - held across calls
        except KeyError:
            raise DataError(f"the .npz has no array {self.member.removesuffix('.npy')!r}") from None
        major, _ = np.lib.format.read_magic(self._file)
        header: Any = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, self.dtype = header(self._file)
        if fortran or self.dtype.hasobject or not shape:
            raise DataError("the array is not stored item by item", fix="save it again: np.savez_compressed of C order")
        self.count, self.shape = int(shape[0]), tuple(shape[1:])
        self.size = math.prod(self.shape) * self.dtype.itemsize
        self.next = 0

    def read(self, at: int) -> np.ndarray:
        if not 0 <= at < self.count:
            raise DataError(f"the array has {self.count} items, none numbered {at}")
        if at < self.next:
            self._rewind()
        while self.next < at:
            self._bytes()
        return np.frombuffer(self._bytes(), self.dtype).reshape(self.shape).copy()

    def _bytes(self) -> bytes:
        assert self._file is not None
        data = self._file.read(self.size)
        if len(data) != self.size:
            raise EOFError
        self.next += 1
        return data


def array_shape(path: str | os.PathLike[str], name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array of a .npz, without reading it. Raises: DataError as `read_array`."""
    try:
        found = _items(str(path), name, Path(path).stat().st_mtime_ns)
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"the array cannot be read ({type(error).__name__})", fix="copy or export it again") from None
    return (found.count, *found.shape), found.dtype
