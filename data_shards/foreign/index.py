"""Sidecar index of one foreign tar: an Arrow file in the cache folder, mapped into memory and read lazily.

It holds places, checksums, hashed keys and the pieces that a layout made of the listed members: no member name, no path
and no field that is not listed. Written aside and renamed, so that several processes may scan the same tar at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from data_shards.errors import DataError
from data_shards.privacy import SALT_ENV, SALT_FILE, resolve_salt
from data_shards.schema import IMAGE_EXTS
from data_shards.sources.layouts import Piece
from data_shards.sources.tar_samples import Record, Scanned

VERSION = 2
_KEPT = ("captions", "report", "labels", "licence", "modality", "meta")  # a group stays only as a hash: `patient`


class Sidecar:
    """One tar's samples, by number. Raises on opening whatever Arrow raises for a file that is not whole."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file)
            batch = table.get_batch(0)
        self.about: dict[str, Any] = json.loads(table.schema.metadata[b"about"])
        if self.about["version"] != VERSION or self.about["samples"] != batch.num_rows:
            raise ValueError("another version")
        self._batch = batch  # keeps the map alive
        columns = {name: batch.column(name) for name in batch.schema.names}
        self.key, self.patient = (_fixed(columns[name]) for name in ("key", "patient"))
        names = ("offset", "bytes", "crc32", "ext", "textless", "modality", "piece_crc32")
        places = (np.asarray(columns[name]) for name in names)
        self.offset, self.bytes, self.crc32, self.ext, self.textless, self._modality, self._piece_crc32 = places
        _, starts, body = columns["piece"].buffers()
        self._starts = np.frombuffer(starts, np.int64)[: batch.num_rows + 1]
        self._body = np.frombuffer(body, np.uint8) if body is not None else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.key)

    def __reduce__(self) -> tuple[type[Sidecar], tuple[Path]]:
        return Sidecar, (self.path,)

    def modality(self, row: int) -> str:
        return str(self.about["modalities"][self._modality[row]])

    def piece(self, row: int) -> Piece:
        """Raises DataError where the cache does not hold what was written into it."""
        body = self._body[self._starts[row] : self._starts[row + 1]].tobytes()
        if crc32(body) != self._piece_crc32[row]:
            raise DataError(
                "the cached index of foreign tars is damaged",
                "words and labels would be wrong in silence",
                "remove the cache folder (~/.cache/voxclip/foreign unless you named one); it is made again",
            )
        found = json.loads(body)
        labels = found["labels"]
        return Piece(
            tuple((text, weight) for text, weight in found["captions"]),
            found["report"],
            tuple(labels) if isinstance(labels, list) else labels,
            licence=found["licence"],
            modality=found["modality"],
            meta=found["meta"],
        )


def write_sidecar(path: Path, scanned: Scanned, about: dict[str, Any]) -> None:
    """Write the samples of one tar. Raises DataError where the cache folder cannot be written."""
    import pyarrow as pa

    records = scanned.records
    pieces = [_body(record) for record in records]
    modalities = sorted({record.piece.modality for record in records})
    listed = {
        "version": VERSION,
        "samples": len(records),
        "flaws": scanned.flaws,
        "lost": scanned.lost,
        "members": dict(scanned.members),
        "licences": dict(Counter(record.piece.licence for record in records)),
        "modalities": modalities,
        "captions": sum(len(r.piece.captions) for r in records),
        "classes": max((_classes(r.piece) for r in records), default=0),
        "content": _content(records, pieces),
        **about,
    }
    columns = {
        "key": pa.array([r.key.encode() for r in records], pa.binary(16)),
        "patient": pa.array([r.patient.encode() for r in records], pa.binary(16)),
        "offset": pa.array([r.offset for r in records], pa.int64()),
        "bytes": pa.array([r.bytes for r in records], pa.int64()),
        "crc32": pa.array([r.crc32 for r in records], pa.uint32()),
        "ext": pa.array([IMAGE_EXTS.index(r.ext) for r in records], pa.uint8()),
        "textless": pa.array([int(_textless(r.piece)) for r in records], pa.uint8()),
        "modality": pa.array([modalities.index(r.piece.modality) for r in records], pa.uint8()),
        "piece": pa.array(pieces, pa.large_binary()),
        "piece_crc32": pa.array([crc32(piece) for piece in pieces], pa.uint32()),
    }
    table = pa.table(columns).replace_schema_metadata({"about": json.dumps(listed)}).combine_chunks()
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table) if len(table) else writer.write_batch(_empty(table.schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _cannot_be_written(error) from None
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def prepare(cache: Path) -> None:
    """Make the cache folder, for its owner only: texts of patients may lie in it. Raises DataError where it cannot be
    written, before anything is scanned."""
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = cache / f".{secrets.token_hex(4)}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _cannot_be_written(error) from None


def patient_salt(cache: Path) -> str:
    """The private salt of patients' hashes: $VOXCLIP_SALT, else a file beside the cache folder, not in it. Raises
    DataError where there is none and it cannot be written."""
    try:
        salt = resolve_salt(cache)
        for _ in range(100):  # another process may have made the file, and not have written it yet
            if salt:
                return salt
            time.sleep(0.02)
            salt = resolve_salt(cache)
    except OSError as error:
        raise DataError(
            f"the salt beside the cache folder cannot be read or written ({error.strerror})",
            "hashes of patients could be undone by trying all numbers",
            f"set {SALT_ENV} to a secret, or name another cache folder",
        ) from None
    raise DataError(
        "the salt beside the cache folder is empty",
        "hashes of patients could be undone by trying all numbers",
        f"remove the file {SALT_FILE} there, or set {SALT_ENV} to a secret",
    )


def _cannot_be_written(error: OSError) -> DataError:
    return DataError(
        f"the cache folder cannot be written ({error.strerror})",
        "every start would scan the tars again",
        "name another one with cache= (or --cache)",
    )


def _empty(schema: Any) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist([], schema=schema)


def _body(record: Record) -> bytes:
    piece = {name: getattr(record.piece, name) for name in _KEPT}
    return json.dumps(piece, ensure_ascii=False, separators=(",", ":")).encode()


def _textless(piece: Piece) -> bool:
    """Labels of which none is present: there is no class to name."""
    return not piece.captions and not piece.report and isinstance(piece.labels, tuple) and 1 not in piece.labels


def _classes(piece: Piece) -> int:
    if piece.labels is None:
        return 0
    return piece.labels + 1 if isinstance(piece.labels, int) else len(piece.labels)


def _content(records: list[Record], pieces: list[bytes]) -> str:
    """sha256 of everything a reader may see of these samples."""
    sha256 = hashlib.sha256()
    for record, piece in zip(records, pieces, strict=True):
        sha256.update(f"{record.key} {record.patient} {record.bytes} {record.crc32} {record.ext} ".encode() + piece)
    return sha256.hexdigest()


def _fixed(column: Any) -> np.ndarray:
    """Fixed binary as numpy strings without copying."""
    return np.frombuffer(column.buffers()[1], "S16")[: len(column)] if len(column) else np.empty(0, "S16")
