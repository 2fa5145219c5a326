"""Check a shard set byte by byte: `python -m data_shards.check DIR`."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_shards.errors import DataError
from data_shards.progress import track
from data_shards.shard_set import ShardSet
from data_shards.shard_write import REJECTED


def check(folder: str | Path) -> list[str]:
    """Everything wrong with a shard set: sha256 of each shard, crc32 of each member, counts, strange files.

    Raises: DataError where it cannot even be opened (no manifest, missing or truncated files).
    """
    shards = ShardSet.open(folder)
    problems: list[str] = []
    counts = Counter(shards.index["shard"].to_pylist())
    for entry in shards.manifest["shards"]:
        if counts[entry["name"]] != entry["samples"]:
            problems.append(
                f"{entry['name']}: {counts[entry['name']]} samples in the index, {entry['samples']} in the manifest"
            )
    known = {"manifest.json", "index.parquet", REJECTED, *(e["name"] for e in shards.manifest["shards"])}
    problems += [
        f"{name}: not part of the shard set" for name in sorted({p.name for p in Path(folder).iterdir()} - known)
    ]
    damaged = []
    for entry in track(shards.manifest["shards"], len(shards.manifest["shards"]), "hashing", "shards"):
        with (Path(folder) / entry["name"]).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                damaged.append(entry["name"])
    problems += [f"{name}: sha256 does not match the manifest" for name in damaged]
    for row in track(range(len(shards)), len(shards), "reading", "samples"):
        for name in shards.members(row):
            try:
                shards.member(row, name)
            except DataError as error:
                problems.append(error.what)
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 for a whole shard set, 1 after listing what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m data_shards.check", description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="shard set: the folder with manifest.json")
    args = parser.parse_args(argv)
    try:
        problems = check(args.folder)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems" if problems else "whole: every shard and member matches its checksum")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
