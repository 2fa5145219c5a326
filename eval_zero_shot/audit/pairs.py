"""The list of leaked pairs as a file: what should be looked at, by hashed key."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("kind", "test_key", "train_set", "train_key", "value", "threshold", "matches")


def write_pairs(folder: Path, pairs: Sequence[Mapping[str, Any]]) -> Path:
    """Write `pairs.csv` (COLUMNS; a row for each test study and kind of match) into `folder`, which is made if needed,
    aside first, then renamed. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.csv"
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(pairs)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path
