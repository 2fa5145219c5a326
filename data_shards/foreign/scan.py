"""Scanning foreign tars into their sidecars, each once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_shards.errors import DataError
from data_shards.foreign.index import VERSION, Sidecar, prepare, write_sidecar
from data_shards.privacy import hashed
from data_shards.progress import track
from data_shards.sources.layouts import LAYOUTS, Layout
from data_shards.sources.published import Beside, ends_of, recognise
from data_shards.sources.tar_samples import read_tar


@dataclass(frozen=True)
class Asked:
    """What decides, beside the tars themselves, what their samples are. layout: a name, or "auto". salt: of the hashes
    of patients, where a field names them."""

    layout: str
    patient_field: str | None
    verify: bool
    cache: Path
    salt: str = field(default="", repr=False)


def scan(tars: Sequence[Path], around: Sequence[Beside], asked: Asked, workers: int = 0) -> list[Sidecar]:
    """The sidecar of each tar, from the cache or made now; the first tar's layout is that of all.

    Raises: DataError as `read_tar` and `recognise`, for a tar that changes meanwhile, for a cache that cannot be
    written, and where `asked.verify` finds other bytes than the first scan did.
    """
    layout, reason = _layout(tars[0], around[0], asked)
    paths = [_sidecar_path(tar, one, layout, asked) for tar, one in zip(tars, around, strict=True)]
    known = [_opened(path) for path in paths]
    todo = [i for i, side in enumerate(known) if side is None]
    if asked.verify:
        for tar, side in zip(tars, known, strict=True):
            if side is not None:
                _compare(tar, side)
    if todo:
        prepare(asked.cache)
    total = sum(tars[i].stat().st_size >> 20 for i in todo)
    each = [partial(_scan_one, tars[i], around[i], paths[i], layout, reason, asked) for i in todo]
    passes = _in_processes(each, workers) if workers and len(each) > 1 else _one_by_one(each)
    for _ in track(megabytes(passes), total, "scanning", "MB"):
        pass
    whole = [side or _opened(path) for side, path in zip(known, paths, strict=True)]
    found = [side for side in whole if side is not None]
    if len(found) < len(tars):
        raise DataError("the index that was just written cannot be read", fix="name another cache folder")
    return found


def _layout(tar: Path, around: Beside, asked: Asked) -> tuple[Layout, str]:
    if asked.layout != "auto":
        return LAYOUTS[asked.layout], "as asked for"
    for layout in LAYOUTS.values():  # what was recognised once needs no second look at the tar
        side = _opened(_sidecar_path(tar, around, layout, asked))
        if side is not None and side.about["asked"] == "auto":
            return layout, str(side.about["reason"])
    return recognise(tar, around)


def _scan_one(
    tar: Path, around: Beside, path: Path, layout: Layout, reason: str, asked: Asked
) -> Generator[int, None, int]:
    """Write a tar's sidecar. Yields the bytes gone through so far, returns the tar's size."""
    size, mtime, digest = ends_of(tar)
    sha256 = hashlib.sha256() if asked.verify else None
    classes = len(around.classes)
    scanned = yield from read_tar(tar, digest, layout, classes, asked.patient_field, asked.salt, asked.verify, sha256)
    if ends_of(tar) != (size, mtime, digest):
        raise DataError(
            f"{tar.name} changed while it was scanned", "its index would be wrong", "open it when it is finished"
        )
    whole = sha256.hexdigest() if sha256 is not None else None
    about = {"asked": asked.layout, "layout": layout.name, "reason": reason, "bytes": size, "sha256": whole}
    write_sidecar(path, scanned, about)
    return size


def _one_by_one(each: Sequence[Callable[[], Generator[int, None, int]]]) -> Iterator[int]:
    before = 0
    for scanning in each:
        passes = scanning()
        while True:
            try:
                yield before + next(passes)
            except StopIteration as stop:
                before += stop.value
                break
        yield before


def _in_processes(each: Sequence[Callable[[], Generator[int, None, int]]], workers: int) -> Iterator[int]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    done = 0
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for finished in as_completed([pool.submit(_to_the_end, scanning) for scanning in each]):
            done += finished.result()
            yield done


def _to_the_end(scanning: Callable[[], Generator[int, None, int]]) -> int:
    return list(_one_by_one([scanning]))[-1]


def _compare(tar: Path, side: Sidecar) -> None:
    with tar.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != side.about["sha256"]:
        raise DataError(
            f"{tar.name} has other bytes than when it was scanned, at the same size and time",
            "training would go on with silently wrong pixels or words",
            "copy it again",
        )


def _sidecar_path(tar: Path, around: Beside, layout: Layout, asked: Asked) -> Path:
    """Named by the tar's content, not by its path: a tar that is moved keeps its index, a changed one gets another."""
    salt = hashed("index", asked.salt) if asked.patient_field else ""  # under another salt patients have other hashes
    words = [VERSION, *ends_of(tar), layout.name, asked.patient_field, salt, asked.verify, around.classes]
    return asked.cache / (hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32] + ".arrow")


def _opened(path: Path) -> Sidecar | None:
    """None where there is none, or a damaged one (Arrow's own errors are among these): it is made again."""
    try:
        return Sidecar(path) if path.is_file() else None
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def megabytes(passes: Iterator[int]) -> Iterator[None]:
    """One item for every megabyte gone through, for a progress bar."""
    done = 0
    for at in passes:
        while done < at >> 20:
            done += 1
            yield
