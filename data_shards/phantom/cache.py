"""Writing phantom sets: in parallel, byte for byte the same for any number of workers, and once per machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from data_shards.shard_write import EncodedStudy, ShardWriter, encode_study

from .study import generate

DIGEST_FILE = Path(__file__).with_name("digest.txt")
DIGEST_STUDIES = 8
_CHUNK = 8  # studies handed to a worker at a time
MAX_SAMPLES = 128


def frozen_digest() -> str:
    """The committed digest of the generator's output: it names the cache, so a changed phantom is never mixed in."""
    text = DIGEST_FILE.read_text() if DIGEST_FILE.exists() else ""
    return text.strip() or "unfrozen"


VERSION = frozen_digest()


def measure_digest(studies: int = DIGEST_STUDIES, seed: int = 0) -> str:
    """sha256 over voxels and json of the first studies, as generated here and now."""
    sha = hashlib.sha256()
    for index in range(studies):
        study = generate(index, seed)
        array = study.scans[0].array
        assert array is not None
        sha.update(np.ascontiguousarray(array, dtype="<i2").tobytes())
        sha.update(json.dumps(study.to_json(), sort_keys=True).encode())
    return sha.hexdigest()


def _encoded(index: int, seed: int) -> EncodedStudy:
    return encode_study(generate(index, seed))


def _stream(studies: int, seed: int, workers: int) -> Iterator[EncodedStudy]:
    task = partial(_encoded, seed=seed)
    if workers <= 1:
        yield from map(task, range(studies))
        return
    with ProcessPoolExecutor(workers) as pool:
        # Submitted in slices: map() alone would queue everything and hold finished studies in memory.
        window = workers * _CHUNK * 8
        for start in range(0, studies, window):
            yield from pool.map(task, range(start, min(start + window, studies)), chunksize=_CHUNK)


def write(
    out: str | os.PathLike[str],
    studies: int,
    seed: int = 0,
    workers: int = 1,
    quiet: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write studies 0..N-1 of `seed` as a shard set. Raises DataError when `out` holds files, unless `overwrite`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("phantom studies"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    writer = ShardWriter(out, max_samples=MAX_SAMPLES, overwrite=overwrite)
    with Progress(*columns, disable=quiet) as bar, writer:
        task = bar.add_task("", total=studies, rate="")
        for encoded in _stream(studies, seed, workers):
            writer.write(encoded)
            speed = bar.tasks[0].speed
            bar.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")
    return Path(out)


def cache_dir(root: str | os.PathLike[str], studies: int, seed: int) -> Path:
    identity = json.dumps({"phantom": VERSION, "seed": seed, "studies": studies}, sort_keys=True)
    return Path(root).expanduser() / f"phantom-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def ensure(root: str | os.PathLike[str], studies: int, seed: int = 0, workers: int = 1, quiet: bool = False) -> Path:
    """The shard set of (phantom version, studies, seed) under `root`: written the first time, found afterwards.

    The writer renames a finished folder into place, so a folder with a manifest is whole; one without is replaced.
    """
    folder = cache_dir(root, studies, seed)
    if (folder / "manifest.json").exists():
        return folder
    return write(folder, studies, seed, workers, quiet, overwrite=True)
