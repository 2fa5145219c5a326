"""Studies into a build folder, shard by shard: what is finished is kept, the rest made, and every study counted."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_shards.build_folder import BuildFolder
from data_shards.catalogue import Catalogue
from data_shards.engine import DIED, InProcess, Pool, Processes, Rejection, in_order
from data_shards.make_study import UNEXPECTED, StudyMaker
from data_shards.privacy import hashed
from data_shards.progress import track
from data_shards.sources.base import ScanFile, StudyRow

LISTED = 50  # rejects found beyond the limit before the build stops
LIBRARIES = ("numpy", "blosc2", "nibabel", "pydicom", "pillow", "python-gdcm", "pyjpegls")


@dataclass
class Built:
    """What a build came to. whole: every study was looked at."""

    catalogue: Catalogue = field(default_factory=Catalogue)
    rejected: list[Rejection] = field(default_factory=list)
    masked: Counter[str] = field(default_factory=Counter)
    whole: bool = True


def build(
    rows: Sequence[StudyRow],
    make: StudyMaker,
    folder: BuildFolder,
    max_samples: int,
    pool: Callable[[], Pool],
    known: Sequence[Rejection],
    max_rejects: int,
) -> Built:
    """Shard i holds the usable ones of rows i * max_samples and those that follow. So a shard depends on its own rows
    only: one that a killed build has finished is kept, and so are those of rows that did not change when others were
    repaired. Stops early at LISTED rejects beyond `max_rejects`, of which `known` are counted already.

    Raises: DataError for a key that is there twice, and a patient in two splits.
    """
    built = Built(rejected=list(known))
    chunks = [rows[i : i + max_samples] for i in range(0, len(rows), max_samples)]
    identities: dict[int, str] = {}
    kept: dict[int, dict[str, Any]] = {}
    for i, chunk in enumerate(chunks if folder.begun else ()):
        identities[i] = identity(chunk, make.salt)
        if (entry := folder.finished(i, identities[i])) is not None and not _may_be_better(entry):
            kept[i] = entry
    if folder.begun:
        done = sum(len(chunks[i]) for i in kept)
        print(f"going on with an interrupted build: {len(kept)} of {len(chunks)} shards ({done} studies) are finished")

    def todo() -> Iterator[StudyRow]:
        for i, chunk in enumerate(chunks):
            if i not in kept:
                # Before they are read: a file that changes meanwhile makes the shard again, never keeps it.
                identities[i] = identity(chunk, make.salt)
                yield from chunk

    total = sum(len(chunk) for i, chunk in enumerate(chunks) if i not in kept)
    made: Iterator[Any] = in_order(pool(), todo()) if total else iter(())
    results = track(made, total, "building")
    try:
        for i, chunk in enumerate(chunks):
            if i in kept:
                entry = kept[i]
                for row in entry["rows"]:
                    built.catalogue.check(row)
            else:
                fresh = _shard(i, chunk, results, folder, built, identities, max_rejects)
                if fresh is None:
                    built.whole = False
                    return built
                entry = fresh
            built.catalogue.add(entry["shard"], entry["rows"])
            built.rejected += [Rejection(*listed) for listed in entry["rejected"]]
            built.masked.update(entry["masked"])
        return built
    finally:
        if isinstance(made, Generator):
            made.close()  # and its processes with it


def _shard(
    number: int,
    chunk: Sequence[StudyRow],
    results: Iterator[Any],
    folder: BuildFolder,
    built: Built,
    identities: dict[int, str],
    max_rejects: int,
) -> dict[str, Any] | None:
    """The journal's entry of a new shard, None where there were too many rejects."""
    shard, rejected, masked = folder.begin(number), list[Rejection](), Counter[str]()
    try:
        for _ in chunk:
            result = next(results)
            if isinstance(result, Rejection):
                rejected.append(result)
                if len(built.rejected) + len(rejected) > max_rejects + LISTED:
                    built.rejected += rejected
                    return None
            else:
                built.catalogue.check(result.row)
                shard.add(result)
                masked.update(result.masked)
        return folder.end(number, identities[number], shard, rejected, dict(masked))
    finally:
        shard.close()


def _may_be_better(entry: dict[str, Any]) -> bool:
    """Whether a study was rejected for what may have nothing to do with it, such as memory that was short."""
    return any(reason.startswith((DIED, UNEXPECTED)) for _, _, reason in entry["rejected"])


def make_pool(engine: str, make: StudyMaker, workers: int) -> Pool:
    """The processes that make studies."""

    def died(row: StudyRow, reason: str) -> Rejection:
        return make.rejected(row, reason)

    if engine == "ray":
        from data_shards.engine_ray import RayTasks

        return RayTasks(make, workers, died)
    return Processes(make, workers, died) if workers else InProcess(make)


def about(options: dict[str, Any], salt: str) -> dict[str, str]:
    """What must be the same for a build to be gone on with: name -> hash, so that no value lies about."""
    code = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml", ".txt")):
        code.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    told = {
        "the salt": hashed("salt", salt),
        "the program's code": code.hexdigest(),
        "the versions of its libraries": ", ".join(versions),
        **{f"--{name.replace('_', '-')}": repr(value) for name, value in options.items()},
    }
    return {name: hashlib.sha256(value.encode()).hexdigest() for name, value in sorted(told.items())}


def content(options: dict[str, Any], rows: Sequence[StudyRow], salt: str, root: Path) -> str:
    """Which build this is, wherever its files lie and whoever runs it: kept in the manifest, as a hash. Of the files,
    their places below `root` and their sizes count."""
    sha = hashlib.sha256(f"{salt}\0{sorted(options.items())}".encode())
    sizes: dict[str, int] = {}
    for row in rows:
        scans = []
        for scan in row.scans:
            for path in _files(scan):
                if path not in sizes:
                    sizes[path] = _size(path)
                sha.update(f"{sizes[path]}\0".encode())
            scans.append(replace(scan, path=os.path.relpath(scan.path, root)))
        sha.update(repr(replace(row, scans=tuple(scans))).encode())
    return sha.hexdigest()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def identity(rows: Sequence[StudyRow], salt: str) -> str:
    """Of the studies of a shard: what their source says, and size and time of their files."""
    sha = hashlib.sha256(salt.encode())
    states: dict[str, str] = {}
    for row in rows:
        sha.update(repr(row).encode())
        for scan in row.scans:
            for path in _files(scan):
                if path not in states:
                    states[path] = _state(path)
                sha.update(states[path].encode())
    return sha.hexdigest()


def _files(scan: ScanFile) -> list[str]:
    if scan.files:
        return [os.path.join(scan.path, name) for name in scan.files]
    if os.path.isdir(scan.path):
        return [entry.path for entry in sorted(os.scandir(scan.path), key=lambda entry: entry.name)]
    return [scan.path]


def _state(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"
