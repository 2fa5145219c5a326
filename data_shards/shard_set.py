"""A shard set read by index: any sample of any shard with one positioned read, checked by its crc32."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_shards.errors import DamagedError, DataError
from data_shards.schema import SCHEMA_VERSION
from data_shards.shard_write import LABEL_PREFIX, EncodedStudy, ShardWriter, encode_study

if TYPE_CHECKING:
    import pyarrow

__all__ = ["EncodedStudy", "ShardSet", "ShardWriter", "encode_study"]
Verify = Literal["first", "always", "never"]
DAMAGED = "training would go on with silently wrong voxels or words"


class ShardSet:
    """A folder of shards, its index, and reads that notice damage. Open with `ShardSet.open(folder)`.

    Picklable; file handles are opened lazily in each process. Rows are numbered as in `index` (a pyarrow Table).
    `verify`: "first" checks a volume's crc32 the first time this process touches it (afterwards crops decode only the
    blocks they need), "always" at every read, "never" trusts the disk. json and images are read whole: always checked.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], manifest_hash: str, index: Any, verify: Verify) -> None:
        self.folder, self.manifest, self.manifest_hash, self.verify = folder, manifest, manifest_hash, verify
        self.index: pyarrow.Table = index
        self.label_names: tuple[str, ...] = tuple(manifest["label_names"])
        # Plain lists and arrays: workers made by fork must not call into arrow's thread pool.
        self._keys: list[str] = index["key"].to_pylist()
        self._shard: list[str] = index["shard"].to_pylist()
        self._split = np.array(index["split"].to_pylist(), dtype=str)
        self._patient: list[str] = index["patient"].to_pylist()
        self._modality: list[str] = index["modality"].to_pylist()
        members = index["members"].combine_chunks()
        self._first = np.asarray(members.offsets)
        flat = members.values
        self._names: list[str] = flat.field("name").to_pylist()
        self._at = np.asarray(flat.field("offset")), np.asarray(flat.field("bytes")), np.asarray(flat.field("crc32"))
        self._fresh()

    def _fresh(self) -> None:
        self._fds: dict[tuple[int, str], int] = {}
        self._checked: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fds": {}, "_checked": set()}

    @classmethod
    def open(cls, folder: str | os.PathLike[str], verify: Verify = "first") -> ShardSet:
        """Open a shard set after comparing every file's size, and the index's hash, with the manifest.

        Raises DataError: no manifest, another schema version, a missing or truncated shard, a changed index.
        """
        root = Path(folder)
        if not (root / "manifest.json").is_file():
            raise DataError(
                f"no manifest.json in folder {root.name!r}",
                "without it nobody can tell whether the shards are whole",
                "give a folder made by data_shards.build or data_shards.phantom",
            )
        body = (root / "manifest.json").read_bytes()
        try:
            manifest = json.loads(body)
            version, shards, index = manifest["schema_version"], manifest["shards"], manifest["index"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("manifest.json is damaged", DAMAGED, "restore it or rebuild the shard set") from error
        if version != SCHEMA_VERSION:
            raise DataError(
                f"the shard set has schema version {version}, this program reads {SCHEMA_VERSION}",
                "fields would be misread",
                "rebuild it, or use the release of VoxCLIP that wrote it",
            )
        problems = []
        for entry in [*shards, index]:
            path = root / entry["name"]
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                problems.append(f"{entry['name']} is missing")
            elif size != entry["bytes"]:
                state = "truncated" if size < entry["bytes"] else "longer than it was"
                problems.append(f"{entry['name']} is {state}: {size} bytes of {entry['bytes']}")
        if not problems and _sha256(root / index["name"]) != index["sha256"]:
            problems.append(f"{index['name']} does not have the hash in the manifest")
        if problems:
            raise DataError(
                "the shard set is not whole: " + "; ".join(problems),
                "samples would be lost or misread in silence",
                "copy these files again, then run `python -m data_shards.check` on the folder",
            )
        import pyarrow.parquet as pq

        table = pq.read_table(root / index["name"], use_threads=False)
        if table.num_rows != manifest["samples"]:
            raise DataError(
                f"the index has {table.num_rows} rows, the manifest says {manifest['samples']}",
                "samples would be lost in silence",
                "rebuild the shard set",
            )
        return cls(root, manifest, hashlib.sha256(body).hexdigest(), table, verify)

    def __len__(self) -> int:
        return len(self._keys)

    def rows(self, split: str | None = None) -> np.ndarray:
        """Row numbers (int64) of a split, or of all samples. Raises DataError for a split with no sample."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        found = np.flatnonzero(self._split == split).astype(np.int64)
        if not len(found):
            raise DataError(
                f"no sample in split {split!r}",
                "a run would train or be scored on nothing",
                f"this shard set has the splits {self.manifest['splits']}",
            )
        return found

    def key(self, row: int) -> str:
        return self._keys[row]

    def patient(self, row: int) -> str:
        return self._patient[row]

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
        """Scan i of a sample: (source, meta). For a volume the source is a blosc2 NDArray (D,H,W) that decodes what is
        sliced, for an image its bytes. `info` spares a second read of the json."""
        scans = (info or self.json(row))["scans"]
        if not 0 <= i < len(scans):
            raise DataError(f"sample {self._keys[row]} has {len(scans)} scans, none numbered {i}")
        at = int(self._first[row]) + i
        if not self._names[at].endswith(".b2nd"):
            return self._read(row, at), scans[i]
        import blosc2

        blosc2.set_nthreads(1)  # the stream parallelises over batches; blosc2's own threads do not survive a fork
        if self.verify == "always" or (self.verify == "first" and at not in self._checked):
            data = self._read(row, at)
            self._checked.add(at)
            return blosc2.ndarray_from_cframe(data), scans[i]
        return blosc2.open(str(self.folder / self._shard[row]), mode="r", offset=int(self._at[0][at])), scans[i]

    def _find(self, row: int, name: str) -> int:
        for at in range(int(self._first[row]), int(self._first[row + 1])):
            if self._names[at] == name or self._names[at] == f"{self._keys[row]}.{name}":
                return at
        raise DataError(f"sample {self._keys[row]} has no member {name!r}", fix=f"it has {self.members(row)}")

    def _read(self, row: int, at: int) -> bytes:
        shard, (offset, size, crc) = self._shard[row], (int(column[at]) for column in self._at)
        ident = (os.getpid(), shard)
        if ident not in self._fds:
            try:
                self._fds[ident] = os.open(self.folder / shard, os.O_RDONLY)
            except OSError as error:
                raise DamagedError(
                    f"{shard} cannot be opened ({error.strerror})",
                    "its samples would be missing from training",
                    "restore it from where it was copied",
                    shard,
                    self._keys[row],
                ) from None
        data = os.pread(self._fds[ident], size, offset)
        if len(data) != size or zlib.crc32(data) != crc:
            state = f"ends after {len(data)} of {size} bytes" if len(data) != size else "does not match its crc32"
            raise DamagedError(
                f"{shard}, sample {self._keys[row]}: member {self._names[at].split('.', 1)[1]} {state}",
                DAMAGED,
                f"copy {shard} again, then run `python -m data_shards.check` on the folder",
                shard,
                self._keys[row],
            )
        return data


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
