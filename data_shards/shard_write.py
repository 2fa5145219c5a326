"""Studies to shards: plain tar files that anybody's `webdataset` reads, with an index for positioned reads.

Layout of a shard set: `shard-000000.tar`, ..., `index.parquet` (one row a sample) and `manifest.json` (sha256 of each
file). The folder appears whole or not at all, and equal studies give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.schema import SCHEMA_VERSION, VOLUME_EXT, Study

CHUNK = (32, 64, 64)  # voxels decoded together at most; a crop decodes the blocks it touches
BLOCK = (16, 32, 32)
LABEL_PREFIX = "label:"
REJECTED = "rejected.csv"  # the only thing besides a shard set that may lie in its folder
TAR_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class EncodedStudy:
    """A study ready for the tar: made in a worker process by `encode_study`, written by `ShardWriter.write`."""

    members: tuple[tuple[str, bytes], ...]
    row: dict[str, Any]
    labels: dict[str, int | None]


def encode_volume(array: np.ndarray, chunk: Sequence[int] = CHUNK) -> bytes:
    """A D,H,W array as a blosc2 NDArray frame (bitshuffle + zstd 5): the same bytes for the same array."""
    import blosc2

    chunks = _even(array.shape, chunk)
    compressed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=chunks,
        blocks=_even(chunks, BLOCK),
        cparams=blosc2.CParams(
            codec=blosc2.Codec.ZSTD, clevel=5, filters=[blosc2.Filter.BITSHUFFLE], nthreads=1, typesize=array.itemsize
        ),
    )
    return bytes(compressed.to_cframe())


def encode_study(study: Study, chunk: Sequence[int] = CHUNK) -> EncodedStudy:
    """Check a study and compress its members. Raises DataError for one that must not be trained on."""
    study.check()
    members: list[tuple[str, bytes]] = []
    for i, scan in enumerate(study.scans):
        if scan.array is not None:
            members.append((f"{study.key}.{i:02d}.{VOLUME_EXT}", encode_volume(scan.array, chunk)))
        else:
            members.append((f"{study.key}.{i:02d}.{scan.ext}", scan.image or b""))
    body = json.dumps(study.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    members.append((f"{study.key}.json", body.encode()))
    row = {
        "key": study.key,
        "patient": study.patient,
        "split": study.split,
        "modality": study.scans[0].modality,
        "licence": study.licence,
        "source": study.source,
    }
    return EncodedStudy(tuple(members), row, dict(study.labels))


class ShardWriter:
    """Write studies into a new shard set; use as a context manager.

    with ShardWriter(out) as writer:
        writer.write(study)

    An exception inside the block leaves no shard set behind. `close()` renames the finished folder into place.

    Args:
        out_dir: the folder to make. It must not hold a shard set already unless `overwrite`.
        max_samples: samples in a shard.
        chunk: voxels (D,H,W) compressed together.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        max_samples: int = 256,
        chunk: Sequence[int] = CHUNK,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out_dir).absolute()
        if self.out.exists() and not overwrite and {p.name for p in self.out.iterdir()} - {REJECTED}:
            raise DataError(
                "the output folder already holds files",
                "shards of two builds would be mixed",
                "name a new folder, or remove the old one first",
            )
        if max_samples < 1:
            raise DataError(f"max_samples is {max_samples}", fix="use 1 or more")
        self.max_samples, self.chunk = max_samples, tuple(chunk)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.tmp = self.out.parent / f".{self.out.name}.{os.getpid()}.tmp"
        shutil.rmtree(self.tmp, ignore_errors=True)
        self.tmp.mkdir()
        self._rows: list[dict[str, Any]] = []
        self._labels: list[dict[str, int | None]] = []
        self._keys: set[str] = set()
        self._split_of: dict[str, str] = {}
        self._shards: list[dict[str, Any]] = []
        self._file: Any = None
        self._closed = False
        self.manifest_hash = ""

    def write(self, study: Study | EncodedStudy) -> None:
        """Add one study. Raises DataError for a bad study, a repeated key, or a patient seen in another split."""
        item = encode_study(study, self.chunk) if isinstance(study, Study) else study
        key, patient, split = item.row["key"], item.row["patient"], item.row["split"]
        if key in self._keys:
            raise DataError(f"key {key} is written twice", "one sample would hide the other", "make study ids unique")
        if self._split_of.setdefault(patient, split) != split:
            raise DataError(
                f"study {key}: its patient is in split {self._split_of[patient]!r} already, and now in {split!r}",
                "held-out results would be measured on patients seen in training",
                "split by patient",
            )
        self._keys.add(key)
        if self._file is None:
            self._name = f"shard-{len(self._shards):06d}.tar"
            self._file = open(self.tmp / self._name, "wb")  # noqa: SIM115 - held across calls
            self._sha, self._bytes, self._samples = hashlib.sha256(), 0, 0
        index = [self._member(name, payload) for name, payload in item.members]
        self._rows.append({**item.row, "shard": self._name, "members": index})
        self._labels.append(item.labels)
        self._samples += 1
        if self._samples == self.max_samples:
            self._end_shard()

    def close(self) -> str:
        """Write index and manifest, then move the folder into place. Returns the manifest's hash."""
        if self._closed:
            return self.manifest_hash
        if not self._rows:
            self.abort()
            raise DataError("no study was written", "an empty shard set cannot be trained on", "check the source")
        if self._file is not None:
            self._end_shard()
        names = sorted({n for labels in self._labels for n in labels})
        self._write_index(names)
        index = (self.tmp / "index.parquet").read_bytes()
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "samples": len(self._rows),
            "patients": len(self._split_of),
            "splits": dict(sorted(Counter(r["split"] for r in self._rows).items())),
            "label_names": names,
            "index": {"name": "index.parquet", "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
            "shards": self._shards,
        }
        body = (json.dumps(manifest, indent=1) + "\n").encode()
        (self.tmp / "manifest.json").write_bytes(body)
        self.manifest_hash = hashlib.sha256(body).hexdigest()
        old = self.tmp.with_suffix(".old")
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.tmp, self.out)
        shutil.rmtree(old, ignore_errors=True)
        self._closed = True
        return self.manifest_hash

    def abort(self) -> None:
        """Give up: nothing of this shard set stays on disk."""
        if self._file is not None:
            self._file.close()
            self._file = None
        shutil.rmtree(self.tmp, ignore_errors=True)
        self._closed = True

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha.update(data)
        self._bytes += len(data)

    def _member(self, name: str, payload: bytes) -> dict[str, Any]:
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and names empty by default: no trace of the machine
        info.size, info.mode = len(payload), 0o644
        self._put(info.tobuf(tarfile.USTAR_FORMAT))
        entry = {"name": name, "offset": self._bytes, "bytes": len(payload), "crc32": zlib.crc32(payload)}
        self._put(payload + b"\0" * (-len(payload) % TAR_BLOCK))
        return entry

    def _end_shard(self) -> None:
        self._put(b"\0" * (2 * TAR_BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._shards.append(
            {"name": self._name, "bytes": self._bytes, "sha256": self._sha.hexdigest(), "samples": self._samples}
        )

    def _write_index(self, names: list[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        member = pa.struct(
            [("name", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64()), ("crc32", pa.uint32())]
        )
        columns: dict[str, Any] = {
            name: pa.array([r[name] for r in self._rows], pa.string())
            for name in ("key", "shard", "patient", "split", "modality", "licence", "source")
        }
        for name in names:
            columns[LABEL_PREFIX + name] = pa.array([labels.get(name) for labels in self._labels], pa.int8())
        columns["members"] = pa.array([r["members"] for r in self._rows], pa.list_(member))
        pq.write_table(pa.table(columns), self.tmp / "index.parquet", compression="zstd")


def _even(shape: Sequence[int], at_most: Sequence[int]) -> tuple[int, ...]:
    """Split each axis into equal pieces near `at_most` voxels: 96 -> 48 + 48 rather than 64 + a padded 32."""
    return tuple(-(-n // max(1, -(-n // c))) for n, c in zip(shape, at_most, strict=True))
