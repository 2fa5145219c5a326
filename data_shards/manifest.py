"""manifest.json and index.parquet of a shard set, believed only after everything in them has been checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from data_shards.catalogue import LABEL_PREFIX, index_types
from data_shards.errors import DataError
from data_shards.schema import SCHEMA_VERSION
from data_shards.shard_write import TAR_BLOCK
from data_shards.storage import Storage

if TYPE_CHECKING:
    import pyarrow

NAME = "manifest.json"
DAMAGED = "training would go on with silently wrong voxels or words"
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,120}")  # no folder, no "..": a stranger's manifest names files too
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_manifest(store: Storage) -> tuple[dict[str, Any], str]:
    """The manifest and its sha256. Raises DataError: none there, not readable, another schema version."""
    try:
        body = store.whole(NAME)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            "no manifest.json at this place",
            "without it nobody can tell whether the shards are whole",
            "give a folder (or its s3://, https:// or hf:// address) made by data_shards.build or data_shards.phantom; "
            "tars of somebody else's are looked at by python -m data_shards.foreign (--verify checks them)",
        ) from None
    except OSError as error:
        raise _unread(NAME, error) from None
    try:
        manifest = json.loads(body)
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("manifest.json is damaged", DAMAGED, "restore it or rebuild the shard set") from error
    if version != SCHEMA_VERSION:
        raise DataError(
            f"the shard set has schema version {version}, this program reads {SCHEMA_VERSION}",
            "fields would be misread",
            "rebuild it, or use the release of VoxCLIP that wrote it",
        )
    try:
        whole = all(_plausible(entry) for entry in [*manifest["shards"], manifest["index"]])
        whole = whole and all(type(entry["samples"]) is int for entry in manifest["shards"])
        whole = whole and type(manifest["samples"]) is int
        whole = whole and all(type(count) is int for count in manifest["splits"].values())
        names = manifest["label_names"]
        whole = whole and type(names) is list and all(type(name) is str for name in names)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataError("manifest.json is damaged", DAMAGED, "restore it or rebuild the shard set")
    return manifest, hashlib.sha256(body).hexdigest()


def size_problems(entries: list[dict[str, Any]], sizes: dict[str, int | None]) -> list[str]:
    """What file sizes alone tell, one line a file. `entries`: of the manifest; `sizes`: of the store."""
    problems = []
    for entry in entries:
        name, want = entry["name"], entry["bytes"]
        if name not in sizes:
            problems.append(f"{name} is missing")
        elif (size := sizes[name]) not in (None, want):
            state = "truncated" if size < want else "longer than it was"
            problems.append(f"{name} is {state}: {size} bytes of {want}")
    return problems


def read_index(store: Storage, manifest: dict[str, Any]) -> pyarrow.Table:
    """The index, after its hash was compared. Raises DataError where it is not the manifest's or contradicts it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    entry = manifest["index"]
    try:
        body = store.whole(entry["name"])
    except FileNotFoundError:
        raise not_whole([f"{entry['name']} is missing"]) from None
    except OSError as error:
        raise _unread(entry["name"], error) from None
    if problems := size_problems([entry], {entry["name"]: len(body)}):
        raise not_whole(problems)
    if hashlib.sha256(body).hexdigest() != entry["sha256"]:
        raise not_whole([f"{entry['name']} does not have the hash in the manifest"])
    try:
        table = pq.read_table(pa.BufferReader(body), use_threads=False)
        if contradiction := _contradiction(table, manifest):
            raise DataError(
                contradiction,
                "samples would be lost or misread in silence",
                "restore manifest.json and the index from where they were copied, or rebuild the shard set",
            )
    except (pa.ArrowException, KeyError, AttributeError, TypeError, OSError) as error:
        raise DataError(
            f"{entry['name']} is as the manifest says, and no index of a shard set ({type(error).__name__})",
            "no sample could be found",
            "rebuild the shard set",
        ) from None
    return table


def _contradiction(table: pyarrow.Table, manifest: dict[str, Any]) -> str:
    """How the index differs from what the manifest says of it; empty where it does not."""
    if table.num_rows != manifest["samples"]:
        return f"the index has {table.num_rows} rows, the manifest says {manifest['samples']}"
    have = [name for name in table.column_names if name.startswith(LABEL_PREFIX)]
    if sorted(have) != sorted(LABEL_PREFIX + name for name in manifest["label_names"]):
        return f"the index has {len(have)} labels, and they are not the {len(manifest['label_names'])} of the manifest"
    for name, kind in index_types(manifest["label_names"]).items():
        if table.column_names.count(name) != 1 or table.schema.field(name).type != kind:
            return f"the index has no column {name!r} of type {kind}"
    if any(table[name].null_count for name in ("key", "shard", "patient", "split", "members")):
        return "the index has rows without a key, shard, patient, split or members"
    splits = Counter(table["split"].to_pylist())
    if splits != Counter(manifest["splits"]):
        return f"the index has the splits {dict(sorted(splits.items()))}, the manifest says {manifest['splits']}"
    members = table["members"].combine_chunks()
    flat = members.flatten()
    places = [flat.field(name) for name in ("name", "offset", "bytes", "crc32")]
    if any(column.null_count for column in places) or min(members.value_lengths().to_pylist(), default=1) < 1:
        return "the index has samples without members, or members without a place"
    low = min(places[1].to_pylist(), default=TAR_BLOCK), min(places[2].to_pylist(), default=0)
    known = {shard["name"] for shard in manifest["shards"]}
    if not set(table["shard"].to_pylist()) <= known or low[0] < TAR_BLOCK or low[1] < 0:
        return "the index names shards or places that the manifest does not"
    return ""


def _unread(name: str, error: OSError) -> DataError:
    return DataError(
        f"{name} cannot be read ({error.strerror or type(error).__name__})",
        "without it nobody can tell whether the shards are whole",
        "check the disk and who may read it; or copy the shard set again",
    )


def not_whole(problems: list[str]) -> DataError:
    return DataError(
        "the shard set is not whole: " + "; ".join(problems),
        "samples would be lost or misread in silence",
        "copy these files again, then run `python -m data_shards.check` on the shard set",
    )


def _plausible(entry: dict[str, Any]) -> bool:
    return (
        bool(_FILE.fullmatch(entry["name"]))
        and type(entry["bytes"]) is int
        and entry["bytes"] >= 0
        and bool(_SHA256.fullmatch(entry["sha256"]))
    )
