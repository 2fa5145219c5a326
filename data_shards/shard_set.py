"""A shard set read by index: any sample of any shard with one positioned read, its tar header and crc32 checked."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from isal.isal_zlib import crc32

from data_shards.catalogue import TEXTLESS
from data_shards.errors import DamagedError, DataError
from data_shards.manifest import DAMAGED, not_whole, read_index, read_manifest, size_problems
from data_shards.remote import RemoteFolder
from data_shards.shard_write import LABEL_PREFIX, TAR_BLOCK, EncodedStudy, ShardWriter, encode_study, tar_header
from data_shards.shards import rows_of_split
from data_shards.storage import LocalFolder, Storage, checksum_in, is_url
from data_shards.stored_volume import StoredVolume, undecodable

if TYPE_CHECKING:
    import pyarrow

__all__ = ["EncodedStudy", "ShardSet", "ShardWriter", "encode_study"]
Verify = Literal["first", "always", "never"]
Damaged = Literal["refuse", "count"]
Reads = Literal["auto", "ranged", "cache"]
GONE_ERRNO = (errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE)  # of the shard; others are of this machine


class ShardSet:
    """Shards, their index, and reads that notice damage. Open with `ShardSet.open(folder or URL)`.

    Picklable; files and connections are opened lazily in each process. Rows are numbered as in `index` (a pyarrow
    Table). `verify`: "first" checks a volume's header and crc32 the first time this process touches it (afterwards
    crops decode only the blocks they need), "always" at every read, "never" trusts a local disk. json, images and
    whatever comes over a network are read whole: always checked. `reads`: "local", "ranged" or "cache".
    """

    def __init__(
        self,
        store: Storage,
        manifest: dict[str, Any],
        manifest_hash: str,
        index: Any,
        sizes: dict[str, int | None],
        verify: Verify,
    ) -> None:
        self.store, self.manifest, self.manifest_hash, self.verify = store, manifest, manifest_hash, verify
        self.reads, self._sizes = store.kind, sizes
        self.index: pyarrow.Table = index
        self.label_names: tuple[str, ...] = tuple(manifest["label_names"])
        # Plain lists and arrays: workers made by fork must not call into arrow's thread pool.
        self._keys: list[str] = index["key"].to_pylist()
        self._shard: list[str] = index["shard"].to_pylist()
        self._split = np.array(index["split"].to_pylist(), dtype=str)
        self._patient: list[str] = index["patient"].to_pylist()
        self._modality: list[str] = index["modality"].to_pylist()
        told = index[TEXTLESS].to_pylist() if TEXTLESS in index.column_names else []
        self.textless = np.flatnonzero(told).astype(np.int64)  # rows without a text: see data_shards.opening.with_text
        members = index["members"].combine_chunks()
        self._first = np.asarray(members.offsets)
        flat = members.values
        self._names: list[str] = flat.field("name").to_pylist()
        self._at = np.asarray(flat.field("offset")), np.asarray(flat.field("bytes")), np.asarray(flat.field("crc32"))
        self._checked: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": set()}

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str],
        verify: Verify = "first",
        damaged: Damaged = "refuse",
        reads: Reads | None = None,
    ) -> ShardSet:
        """Open a shard set after comparing every file's size, and the index's hash, with the manifest.

        Args:
            where: a folder, or a URL that fsspec opens: s3://, https://, hf://, ... (docs/storage.md).
            damaged: "refuse" a set with a missing or truncated shard, or open it and let each read of what is damaged
                raise DamagedError ("count": the reader decides how many are too many).
            reads: of a URL. "ranged": one request a sample. "cache": whole shards into a bounded local folder.
                "auto": the cache where the whole set fits. None: $VOXCLIP_READS, else "auto". A folder is read
                in place.

        Raises DataError: no manifest, another schema version, a missing or truncated shard, a changed index, a store
        that cannot be reached.
        """
        if damaged not in ("refuse", "count"):
            raise DataError(f"damaged is {damaged!r}", fix='use "refuse" or "count"')
        found = RemoteFolder(str(where)) if is_url(where) else LocalFolder(where)
        manifest, manifest_hash = read_manifest(found)
        store: Storage = found
        if isinstance(found, RemoteFolder):
            from data_shards.shard_cache import choose

            store = choose(found, {e["name"]: (e["bytes"], e["sha256"]) for e in manifest["shards"]}, reads)
        index = read_index(store, manifest)
        sizes = store.sizes([entry["name"] for entry in manifest["shards"]])
        if damaged == "refuse" and (problems := size_problems(manifest["shards"], sizes)):
            raise not_whole(problems)
        return cls(store, manifest, manifest_hash, index, sizes, verify)

    def __len__(self) -> int:
        return len(self._keys)

    def rows(self, split: str | None = None) -> np.ndarray:
        """Row numbers (int64) of a split, or of all samples. Raises DataError for a split with no sample."""
        return rows_of_split(self._split, split, f"this shard set has the splits {self.manifest['splits']}")

    def key(self, row: int) -> str:
        return self._keys[row]

    def patient(self, row: int) -> str:
        return self._patient[row]

    def shard(self, row: int) -> str:
        """Name of the file that holds the sample."""
        return self._shard[row]

    def modality(self, row: int) -> str:
        """Modality of the first scan, as DICOM writes it."""
        return self._modality[row]

    def labels(self, names: tuple[str, ...] | None = None) -> np.ndarray:
        """Labels of all rows, float32 (rows, names): 1, 0, or NaN for unknown. Raises DataError for a strange name."""
        chosen = self.label_names if names is None else tuple(names)
        strange = [n for n in chosen if n not in self.label_names]
        if strange:
            raise DataError(f"no label {strange} in this shard set", fix=f"it has {list(self.label_names)}")
        out = np.full((len(self), len(chosen)), np.nan, np.float32)
        for i, name in enumerate(chosen):
            values = self.index[LABEL_PREFIX + name].to_pylist()
            out[:, i] = [np.nan if v is None else v for v in values]
        return out

    def members(self, row: int) -> list[str]:
        """Names of a sample's members, scans first, `KEY.json` last."""
        return self._names[self._first[row] : self._first[row + 1]]

    def member(self, row: int, name: str) -> bytes:
        """One member's bytes, checked by crc32. Raises DataError naming shard and row key where they do not match."""
        return self._read(row, self._find(row, name))

    def json(self, row: int) -> dict[str, Any]:
        """The sample's json (see contract 1)."""
        return json.loads(self._read(row, int(self._first[row + 1]) - 1))

    def scan(self, row: int, i: int = 0, info: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Scan i of a sample: (source, meta). For a volume the source is an array (D,H,W) that decodes what is sliced,
        for an image its bytes. `info` spares a second read of the json."""
        scans = (info or self.json(row))["scans"]
        if not 0 <= i < len(scans):
            raise DataError(f"sample {self._keys[row]} has {len(scans)} scans, none numbered {i}")
        at = int(self._first[row]) + i
        if not self._names[at].endswith(".b2nd"):
            return self._read(row, at), scans[i]
        import blosc2

        blosc2.set_nthreads(1)  # the stream parallelises over batches; blosc2's own threads do not survive a fork
        if self.verify != "always":
            held = self._held(row)
            if held is not None and (self.verify == "never" or self._good_in(held[0], row, at)):
                try:
                    array = blosc2.open(str(held[0]), mode="r", offset=int(self._at[0][at]))
                    return StoredVolume(array, held[1], lambda: self._array(row, at)), scans[i]
                except (OSError, RuntimeError, ValueError):
                    pass  # read whole below, which tells what is wrong
            del held  # a kept copy that went bad can be replaced only while nobody holds it
        return StoredVolume(self._array(row, at), None, lambda: self._array(row, at)), scans[i]

    def _good_in(self, path: Path, row: int, at: int) -> bool:
        """Whether a member of a local file is what was written; checked once. A member that is not is read again whole,
        which names what is wrong with it."""
        if at in self._checked:
            return True
        offset, size, crc = (int(column[at]) for column in self._at)
        try:
            good = checksum_in(path, offset, size) == (tar_header(self._names[at], size), crc)
        except OSError:
            return False
        if good:
            self._checked.add(at)
        return good

    def _array(self, row: int, at: int) -> Any:
        """A volume read whole and checked: a blosc2 NDArray in memory."""
        import blosc2

        self._checked.discard(at)
        data = self._read(row, at)
        try:
            array = blosc2.ndarray_from_cframe(data)
        except (RuntimeError, ValueError):
            raise undecodable() from None
        self._checked.add(at)
        return array

    def unreadable_rows(self) -> np.ndarray:
        """Rows (int64) whose bytes cannot all be there, by the sizes of the files alone. Reads nothing."""
        ends = np.maximum.reduceat(self._at[0] + self._at[1], self._first[:-1])
        have = {name: np.iinfo(np.int64).max if size is None else size for name, size in self._sizes.items()}
        return np.flatnonzero(ends > [have.get(shard, -1) for shard in self._shard]).astype(np.int64)

    def _find(self, row: int, name: str) -> int:
        for at in range(int(self._first[row]), int(self._first[row + 1])):
            if self._names[at] == name or self._names[at] == f"{self._keys[row]}.{name}":
                return at
        raise DataError(f"sample {self._keys[row]} has no member {name!r}", fix=f"it has {self.members(row)}")

    def _held(self, row: int) -> tuple[Any, Any] | None:
        try:
            return self.store.held(self._shard[row])
        except FileNotFoundError:
            raise self._gone(row, "not there") from None

    def _read(self, row: int, at: int) -> bytes:
        if self._shard[row] not in self._sizes:
            raise self._gone(row, "it is missing")
        while True:
            try:
                return self._payload(row, at)
            except DamagedError:  # of what was kept, or of the set?
                if not self.store.forget(self._shard[row]):
                    raise

    def _payload(self, row: int, at: int) -> bytes:
        offset, size, crc = (int(column[at]) for column in self._at)
        try:
            header, payload = self.store.member(self._shard[row], offset, size)
        except OSError as error:
            if error.errno not in GONE_ERRNO:
                raise refused(self._shard[row], error) from None
            raise self._gone(row, error.strerror or type(error).__name__) from None
        if len(payload) != size or len(header) != TAR_BLOCK:
            raise self._damage(row, at, f"ends after {len(payload)} of {size} bytes")
        if header != tar_header(self._names[at], size):
            raise self._damage(row, at, "has another tar header than was written")
        if crc32(payload) != crc:
            raise self._damage(row, at, "does not match its crc32")
        return payload

    def _gone(self, row: int, reason: str) -> DamagedError:
        shard = self._shard[row]
        return DamagedError(
            f"{shard}, sample {self._keys[row]}: the shard cannot be opened ({reason})",
            "its samples would be missing from training",
            "restore it from where it was copied",
            shard,
            self._keys[row],
        )

    def _damage(self, row: int, at: int, state: str) -> DamagedError:
        shard = self._shard[row]
        return DamagedError(
            f"{shard}, sample {self._keys[row]}: member {self._names[at].partition('.')[2]} {state}",
            DAMAGED,
            f"copy {shard} again, then run `python -m data_shards.check` on the shard set",
            shard,
            self._keys[row],
        )


def refused(shard: str, error: OSError) -> DataError:
    """The machine's fault, not the shard's: skipping the sample would lose good data."""
    fixes = {
        errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer workers",
        errno.ENFILE: "raise the machine's limit of open files, or use fewer workers",
        errno.EACCES: "ask for leave to read the shards",
        errno.EPERM: "ask for leave to read the shards",
        errno.ENOMEM: "use fewer workers, or free memory",
    }
    return DataError(
        f"{shard} cannot be read ({error.strerror or type(error).__name__})",
        "its samples are not damaged, and must not be skipped as if they were",
        fixes.get(error.errno or 0, "mend it, then start again: a run resumes where it was"),
    )
