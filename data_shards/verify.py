"""Every byte of a shard set against its manifest and index, and a fingerprint of each sample on the way."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_shards.errors import DamagedError, DataError
from data_shards.manifest import NAME, size_problems
from data_shards.shard_set import ShardSet
from data_shards.shard_write import REJECTED

# What may be said of a strange file's name: others may hold a patient's.
_KNOWN_ENDINGS = {"tar", "parquet", "json", "csv", "txt", "part", "tmp", "gz", "nii", "dcm", "npy", "npz", "png", "jpg"}


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written. `key` is empty where it is about a whole file."""

    shard: str
    key: str
    what: str


@dataclass(frozen=True)
class Fingerprint:
    """What makes two samples the same: hashes of each scan and of the report (empty where there is none)."""

    row: int
    images: tuple[str, ...]
    report: str


@dataclass
class Verified:
    damage: list[Damage] = field(default_factory=list)
    samples: list[Fingerprint] = field(default_factory=list)


def verify(shards: ShardSet, deep: bool, into: Verified) -> Iterator[int]:
    """Yields each row number once it is done. sha256 of each shard; header, length and crc32 of each member; counts;
    strange files. `deep`: volumes and images are decoded too, and fingerprints are of voxels instead of stored bytes.

    Args:
        shards: opened with damaged="count".
        into: where findings go.
    """
    entries = shards.manifest["shards"]
    names = [entry["name"] for entry in entries]
    counts = Counter(shards.index["shard"].to_pylist())
    into.damage += [
        Damage(e["name"], "", f"{e['name']}: {counts[e['name']]} samples in the index, {e['samples']} in the manifest")
        for e in entries
        if counts[e["name"]] != e["samples"]
    ]
    into.damage += _strange(shards.store.names(), {NAME, shards.manifest["index"]["name"], REJECTED, *names})
    of_shard: dict[str, list[int]] = {name: [] for name in names}
    for row, name in enumerate(shards.index["shard"].to_pylist()):
        of_shard[name].append(row)
    sizes = shards.store.sizes(names)
    for entry in entries:
        name, rows = entry["name"], of_shard[entry["name"]]
        wrong = size_problems([entry], sizes)
        into.damage += [Damage(name, "", f"{line} ({len(rows)} samples)") for line in wrong]
        if name not in sizes:
            into.damage += [Damage(name, shards.key(row), f"{name}, sample {shards.key(row)}: missing") for row in rows]
            yield from rows
            continue
        with shards.store.fetched(name) as folder:
            try:
                if not wrong and _sha256(folder.folder / name) != entry["sha256"]:
                    into.damage.append(Damage(name, "", f"{name}: sha256 does not match the manifest"))
            except OSError as error:  # of a disk; its text shows the path
                into.damage.append(
                    Damage(name, "", f"{name}: cannot be read ({error.strerror or type(error).__name__})")
                )
            local = copy.copy(shards)
            local.store = folder
            for row in rows:
                try:
                    into.samples.append(_fingerprint(local, row, deep))
                except DamagedError as error:
                    into.damage.append(Damage(name, shards.key(row), error.what))
                yield row


def _fingerprint(shards: ShardSet, row: int, deep: bool) -> Fingerprint:
    """Raises DamagedError for the first member that is not as written, or does not decode."""
    *scans, _ = shards.members(row)
    stored = [(name, shards.member(row, name)) for name in scans]
    info = shards.json(row)
    try:
        images = tuple(_hash(*(_decoded(name, data) if deep else (data,))) for name, data in stored)
        if len(info["scans"]) != len(scans):
            raise ValueError(f"{len(info['scans'])} scans in the json, {len(scans)} in the shard")
        report = normalised(_report(info["texts"]))
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, DataError) as error:
        shard, key = shards.index["shard"][row].as_py(), shards.key(row)
        what = f"{shard}, sample {key}: stored as it was written, but it does not decode ({type(error).__name__})"
        raise DamagedError(what, shard=shard, key=key) from None
    return Fingerprint(row, images, _hash(report.encode()) if report else "")


def _decoded(name: str, data: bytes) -> tuple[bytes, bytes]:
    import numpy as np

    array: Any
    if name.endswith(".b2nd"):
        import blosc2

        blosc2.set_nthreads(1)
        array = blosc2.ndarray_from_cframe(data)[:]
        if array.ndim != 3:
            raise ValueError(f"a volume of {array.ndim} axes")
    else:
        from PIL import Image

        array = np.asarray(Image.open(io.BytesIO(data)))
    return json.dumps([array.shape, str(array.dtype)]).encode(), np.ascontiguousarray(array).tobytes()


def _report(texts: dict[str, Any]) -> str:
    """The whole report, or its sections. Captions made from labels repeat by design and do not count."""
    return texts.get("report") or " ".join(texts.get(part) or "" for part in ("findings", "impression"))


def normalised(text: str) -> str:
    """Words only, in lower case: reports that differ in spaces, case or punctuation are equal."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _strange(names: list[str] | None, known: set[str]) -> list[Damage]:
    strange = [name for name in names or [] if name not in known]
    endings = Counter(name.rpartition(".")[2].lower() for name in strange)
    said = Counter({f".{end}" if end in _KNOWN_ENDINGS else "other": 0 for end in endings})
    for end, count in endings.items():
        said[f".{end}" if end in _KNOWN_ENDINGS else "other"] += count
    listed = ", ".join(f"{count} {ending}" for ending, count in sorted(said.items()))
    return [Damage("", "", f"{len(strange)} files are not part of the shard set ({listed})")] if strange else []


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _sha256(path: Any) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
