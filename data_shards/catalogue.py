"""What is known of the samples of a shard set while it is written: index.parquet, manifest.json, and two checks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.schema import SCHEMA_VERSION

LABEL_PREFIX = "label:"
META_PREFIX = "meta:"
TEXTLESS = "textless"  # a column of sets in which some study has no text; others do without it
TEXTS = ("key", "shard", "patient", "split", "modality", "licence", "source")


def index_types(label_names: Sequence[str]) -> dict[str, Any]:
    """Column -> arrow type of every column of an index but the meta: ones, whose types are the data's."""
    import pyarrow as pa

    member = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64()), ("crc32", pa.uint32())])
    labels = {LABEL_PREFIX + name: pa.int8() for name in label_names}
    return {**dict.fromkeys(TEXTS, pa.string()), **labels, "members": pa.list_(member)}


class Catalogue:
    """Rows of the index in the order of the shards. A row is plain data (json): key, patient, split, modality, licence,
    source, labels, meta, textless, and members with their place in the shard."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.shards: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        self._split_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def check(self, row: dict[str, Any]) -> None:
        """Note a study that will be written. Raises DataError: a repeated key, or a patient seen in another split."""
        key, patient, split = row["key"], row["patient"], row["split"]
        if key in self._keys:
            raise DataError(f"key {key} is written twice", "one sample would hide the other", "make study ids unique")
        if self._split_of.setdefault(patient, split) != split:
            raise DataError(
                f"study {key}: its patient is in split {self._split_of[patient]!r} already, and now in {split!r}",
                "held-out results would be measured on patients seen in training",
                "split by patient",
            )
        self._keys.add(key)

    def add(self, shard: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        """A finished shard: its entry of the manifest and its rows, which were checked before."""
        self.shards.append(shard)
        self.rows += [{**row, "shard": shard["name"]} for row in rows]

    def write(self, folder: Path, further: dict[str, Any] | None = None) -> str:
        """Write index.parquet and manifest.json, `further` at its end. Returns the manifest's sha256."""
        names = sorted({name for row in self.rows for name in row["labels"]})
        self._write_index(folder / "index.parquet", names)
        index = (folder / "index.parquet").read_bytes()
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "samples": len(self.rows),
            "patients": len(self._split_of),
            "splits": dict(sorted(Counter(row["split"] for row in self.rows).items())),
            "label_names": names,
            "index": {"name": "index.parquet", "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
            "shards": self.shards,
            **(further or {}),
        }
        body = (json.dumps(manifest, indent=1) + "\n").encode()
        (folder / "manifest.json").write_bytes(body)
        return hashlib.sha256(body).hexdigest()

    def _write_index(self, path: Path, names: list[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from data_shards.selection import meta_column

        types = index_types(names)
        columns: dict[str, Any] = {name: pa.array([row[name] for row in self.rows], types[name]) for name in TEXTS}
        for name in names:
            column = LABEL_PREFIX + name
            columns[column] = pa.array([row["labels"].get(name) for row in self.rows], types[column])
        for name in sorted({name for row in self.rows for name in row["meta"]}):
            columns[META_PREFIX + name] = meta_column([row["meta"].get(name) for row in self.rows])
        if any(row[TEXTLESS] for row in self.rows):
            columns[TEXTLESS] = pa.array([row[TEXTLESS] for row in self.rows], pa.bool_())
        columns["members"] = pa.array([row["members"] for row in self.rows], types["members"])
        pq.write_table(pa.table(columns), path, compression="zstd")
