"""A shard set at a glance: rows of (what, value) over a sample of its studies, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.inspect.draw import draw_sheet
from data_shards.inspect.scan import Row
from data_shards.shard_set import ShardSet

LOOKED_AT = 400  # studies whose json is read
DRAWN = 12


def rows_of_set(shards: ShardSet) -> list[Row]:
    """Counts of the whole set; sizes, units and notes of at most LOOKED_AT studies, spread evenly."""
    manifest = shards.manifest
    size = sum(entry["bytes"] for entry in manifest["shards"]) / 1e6
    rows: list[Row] = [
        ("studies", f"{manifest['samples']} of {manifest['patients']} patients"),
        ("shards", f"{len(manifest['shards'])}, {size:.1f} MB"),
        ("splits", _counts(manifest["splits"])),
    ]
    for name in ("modality", "source", "licence"):
        found = Counter(value or "not said" for value in shards.index[name].to_pylist())
        rows.append((name, _counts(dict(found.most_common(8)))))
    labels = shards.labels() if shards.label_names else np.zeros((len(shards), 0), np.float32)
    for i, name in enumerate(shards.label_names[:30]):
        column = labels[:, i]
        unknown = int(np.isnan(column).sum())
        rows.append(
            (f"label {name}", f"{int(np.nansum(column))} present" + (f", {unknown} unknown" if unknown else ""))
        )
    if len(shards.label_names) > 30:
        rows.append(("labels", f"{len(shards.label_names) - 30} more"))
    return rows + _sampled(shards)


def _sampled(shards: ShardSet) -> list[Row]:
    chosen = spread(len(shards), LOOKED_AT)
    entries = [shards.json(int(row)) for row in chosen]
    scans = [scan for entry in entries for scan in entry["scans"]]
    notes = Counter(code for scan in scans for code, _ in scan.get("notes", ()))
    texts = Counter(name for entry in entries for name, text in entry["texts"].items() if text)
    rows: list[Row] = [
        ("looked at", f"{len(entries)} studies" + ("" if len(entries) == len(shards) else ", spread evenly")),
        ("scans a study", _counts(Counter(f"{len(entry['scans'])}:" for entry in entries))),
        ("units", _counts(Counter(scan["unit"] for scan in scans))),
        ("texts", _counts(texts)),
    ]
    volumes = [scan for scan in scans if scan["shape"]]
    if volumes:
        rows.append(("shape (head, front, right)", _ranges([scan["shape"] for scan in volumes], "d")))
        rows.append(("spacing, mm", _ranges([scan["spacing_mm"] for scan in volumes], ".3g")))
    if notes:
        rows.append(("notes", _counts(dict(notes.most_common()))))
    return rows


def sheet(shards: ShardSet, out: Path) -> int:
    """Draw up to DRAWN studies, spread evenly. Returns how many."""
    chosen = spread(len(shards), DRAWN)
    studies = []
    for row in chosen:
        source, meta = shards.scan(int(row))
        studies.append((f"{shards.key(int(row))[:10]} {meta['modality']}", source, meta))
    draw_sheet(studies, out)
    return len(studies)


def row_of(shards: ShardSet, key: str) -> int:
    """The row of a key, or of the only key that begins so. Raises: DataError for none or several."""
    found = [row for row in range(len(shards)) if shards.key(row).startswith(key)]
    exact = [row for row in found if shards.key(row) == key]
    if len(exact or found) != 1:
        raise DataError(f"{len(found)} studies of this set have a key that begins with the one given to --study")
    return (exact or found)[0]


def spread(total: int, wanted: int) -> np.ndarray:
    """At most `wanted` of `total` numbers, evenly spread, rising."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).round().astype(np.int64))


def _counts(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: str(item[0])))


def _ranges(values: Sequence[Sequence[float]], form: str) -> str:
    axes = list(zip(*values))
    return " x ".join(f"{min(a):{form}}" if min(a) == max(a) else f"{min(a):{form}}..{max(a):{form}}" for a in axes)
