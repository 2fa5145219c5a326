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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from data_shards.catalogue import LABEL_PREFIX, Catalogue
from data_shards.errors import DataError
from data_shards.schema import VOLUME_EXT, Study

CHUNK = (32, 64, 64)  # voxels decoded together at most; a crop decodes the blocks it touches
BLOCK = (16, 32, 32)
REJECTED = "rejected.csv"  # the only thing besides a shard set that may lie in its folder
TAR_BLOCK = tarfile.BLOCKSIZE

__all__ = ["LABEL_PREFIX", "REJECTED", "TAR_BLOCK", "EncodedStudy", "ShardFile", "ShardWriter", "encode_study"]


@dataclass(frozen=True)
class EncodedStudy:
    """A study ready for the tar: made in a worker process by `encode_study`, written by `ShardWriter.write`.

    row: its row of the index (see `Catalogue`), without the places of its members.
    masked: kind -> pieces of its texts that were masked as identifiers (data_shards.deidentify).
    """

    members: tuple[tuple[str, bytes], ...]
    row: dict[str, Any]
    masked: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of its members."""
        return sum(len(payload) for _, payload in self.members)


def encode_volume(array: np.ndarray, chunk: Sequence[int] = CHUNK) -> bytes:
    """A D,H,W array as a blosc2 NDArray frame (bitshuffle + zstd 5): the same bytes for the same array."""
    import blosc2

    for name in [name for name in os.environ if name.startswith("BLOSC_")]:
        del os.environ[name]  # c-blosc2 would let them override the arguments below, and the bytes would differ
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
        "labels": dict(study.labels),
        "meta": dict(study.meta),
        "textless": study.texts.empty,
    }
    return EncodedStudy(tuple(members), row)


class ShardFile:
    """One tar being written: equal studies in equal order give equal bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._file = open(path, "wb")  # noqa: SIM115 - held across calls
        self._sha, self._bytes = hashlib.sha256(), 0

    def add(self, item: EncodedStudy) -> None:
        """Append a study; its row, with the places of its members, is then the last of `rows`."""
        members = [self._member(name, payload) for name, payload in item.members]
        self.rows.append({**item.row, "members": members})

    def end(self, name: str) -> dict[str, Any]:
        """Close the tar, on the disk. Returns its entry of the manifest under this name."""
        self._put(b"\0" * (2 * TAR_BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"name": name, "bytes": self._bytes, "sha256": self._sha.hexdigest(), "samples": len(self.rows)}

    def close(self) -> None:
        """Close a tar that will not be finished."""
        self._file.close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha.update(data)
        self._bytes += len(data)

    def _member(self, name: str, payload: bytes) -> dict[str, Any]:
        self._put(tar_header(name, len(payload)))
        entry = {"name": name, "offset": self._bytes, "bytes": len(payload), "crc32": crc32(payload)}
        self._put(payload + b"\0" * (-len(payload) % TAR_BLOCK))
        return entry


class ShardWriter:
    """Write studies into a new shard set; use as a context manager.

    with ShardWriter(out) as writer:
        writer.write(study)

    An exception inside the block leaves no shard set behind. `close()` renames the finished folder into place.
    (`data_shards.build` writes through data_shards.build_folder instead, which can be killed and gone on with.)

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
        if not overwrite:
            require_free(self.out)
        if max_samples < 1:
            raise DataError(f"max_samples is {max_samples}", fix="use 1 or more")
        self.max_samples, self.chunk = max_samples, tuple(chunk)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.tmp = self.out.parent / f".{self.out.name}.{os.getpid()}.tmp"
        shutil.rmtree(self.tmp, ignore_errors=True)
        self.tmp.mkdir()
        self._catalogue = Catalogue()
        self._shard: ShardFile | None = None
        self._closed = False
        self.manifest_hash = ""

    def write(self, study: Study | EncodedStudy) -> None:
        """Add one study. Raises DataError for a bad study, a repeated key, or a patient seen in another split."""
        item = encode_study(study, self.chunk) if isinstance(study, Study) else study
        self._catalogue.check(item.row)
        if self._shard is None:
            self._shard = ShardFile(self.tmp / shard_name(len(self._catalogue.shards)))
        self._shard.add(item)
        if len(self._shard.rows) == self.max_samples:
            self._end_shard(self._shard)

    def close(self) -> str:
        """Write index and manifest, then move the folder into place. Returns the manifest's hash."""
        if self._closed:
            return self.manifest_hash
        if self._shard is not None:
            self._end_shard(self._shard)
        if not len(self._catalogue):
            self.abort()
            raise DataError("no study was written", "an empty shard set cannot be trained on", "check the source")
        self.manifest_hash = self._catalogue.write(self.tmp)
        old = self.tmp.with_suffix(".old")
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.tmp, self.out)
        shutil.rmtree(old, ignore_errors=True)
        self._closed = True
        return self.manifest_hash

    def abort(self) -> None:
        """Give up: nothing of this shard set stays on disk."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        shutil.rmtree(self.tmp, ignore_errors=True)
        self._closed = True

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _end_shard(self, shard: ShardFile) -> None:
        self._catalogue.add(shard.end(shard.path.name), shard.rows)
        self._shard = None


def shard_name(number: int) -> str:
    """ "shard-000007.tar"."""
    return f"shard-{number:06d}.tar"


def require_free(out: Path) -> None:
    """Raise DataError for a folder that holds anything but a list of rejects."""
    if out.exists() and {p.name for p in out.iterdir()} - {REJECTED}:
        raise DataError(
            "the output folder already holds files",
            "shards of two builds would be mixed",
            "name a new folder, or remove the old one first",
        )


def _even(shape: Sequence[int], at_most: Sequence[int]) -> tuple[int, ...]:
    """Split each axis into equal pieces near `at_most` voxels: 96 -> 48 + 48 rather than 64 + a padded 32."""
    return tuple(-(-n // max(1, -(-n // c))) for n, c in zip(shape, at_most, strict=True))


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes that stand in front of a member: no time, no owner, nothing of the machine."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)
