"""Which study is behind a hashed key: a list for whoever built the shards, never part of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from data_shards.errors import DataError
from data_shards.make_study import StudyMaker
from data_shards.sources.base import Refused, StudyRow


def write_private_keys(
    path: Path, shards: Path, make: StudyMaker, rows: Iterable[StudyRow], refused: Iterable[Refused]
) -> None:
    """A CSV of key, line, id, patient, readable for its owner alone; written aside, then renamed.

    Raises DataError where it would lie among the shards.
    """
    path = path.absolute()
    if path.parent == shards.absolute() or shards.absolute() in path.parents:
        raise DataError(
            "--private-keys names a file inside the shard set",
            "whoever gets the shards would get the patients' numbers",
            "name a file elsewhere",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["key", "line", "id", "patient"])
            writer.writerows((make.key(row.id), row.line, row.id, row.patient) for row in rows)
            writer.writerows((make.key(one.id), one.line, one.id, "") for one in refused)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
