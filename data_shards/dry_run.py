"""What a build would make, told from the listing and a few studies; nothing is written."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from data_shards.engine import Rejection
from data_shards.make_study import NO_TEXT, StudyMaker, masked_texts
from data_shards.sources.base import StudyRow

READ = 5  # studies that are read, spread over the listing
TEXTS = 200  # studies whose texts are searched for identifiers
SHOWN = 8


def dry_run(rows: Sequence[StudyRow], refused: Sequence[Rejection], make: StudyMaker, max_rejects: int) -> bool:
    """Print counts per split, modality and label, missing texts, what cannot be used, and size and time to expect.
    Whether the build would stop on what was found so far."""
    patients: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        patients[row.split].add(row.patient)
    print(f"{len(rows)} studies, {sum(len(row.scans) for row in rows)} scans")
    for split, count in sorted(Counter(row.split for row in rows).items()):
        print(f"  split {split}: {count} studies of {len(patients[split])} patients")
    kinds = Counter(scan.modality or make.modality or "as the files say" for row in rows for scan in row.scans)
    print(_line("modality", kinds))
    fields: Counter[str] = Counter()
    for row in rows:
        told = {"report": row.texts.report, "findings": row.texts.findings, "impression": row.texts.impression}
        fields.update([name for name, text in told.items() if text.strip()] + ["captions"] * bool(row.texts.captions))
    print(_line("texts", fields) + f"; none at all in {sum(row.texts.empty for row in rows)} studies")
    for name in sorted({name for row in rows for name in row.labels}):
        values = Counter(row.labels.get(name) for row in rows)
        print(f"  label {name}: {values[1]} present, {values[0]} absent, {values[None]} unknown")
    _tell_masks(rows, make)
    found, listed = _read_some(rows, make), list(refused)
    listed += [make.rejected(row, NO_TEXT) for row in rows if make.wordless(row)]
    problems = sorted({*listed, *found}, key=lambda r: r.line)
    for problem in problems[:SHOWN]:
        print(f"  line {problem.line} cannot be used: {problem.reason}")
    unread = len(rows) - READ
    if unread > 0:
        print(f"  {unread} studies were not opened: what is wrong inside their files shows when they are built")
    stop = len(problems) > max_rejects
    if problems:
        state = f"{len(problems)} studies cannot be used; --max-rejects is {max_rejects}"
        print(state + (": the build would stop" if stop else ""))
    return stop


def _tell_masks(rows: Sequence[StudyRow], make: StudyMaker) -> None:
    if not make.mask_texts:
        print("  texts are stored as they are (--keep-text-as-is)")
        return
    masked: Counter[str] = Counter()
    some = rows[:: max(1, len(rows) // TEXTS)][:TEXTS]
    for row in some:
        masked.update(masked_texts(row.texts, row.known)[1])
    print(_line(f"identifiers that would be masked in {len(some)} studies", masked))


def _read_some(rows: Sequence[StudyRow], make: StudyMaker) -> list[Rejection]:
    """Read a few studies; what is wrong with them."""
    some = [row for row in rows[:: max(1, len(rows) // READ)][:READ] if not make.wordless(row)]
    began = time.perf_counter()
    results: list[Any] = [make(row) for row in some]
    took = time.perf_counter() - began
    sizes = [result.size for result in results if not isinstance(result, Rejection)]
    if sizes:
        total, hours = sum(sizes) / len(sizes) * len(rows) / 1e9, took / len(some) * len(rows) / 3600
        print(f"  {len(some)} studies were read: all would be about {total:.3g} GB and {hours:.2g} core hours")
    return [result for result in results if isinstance(result, Rejection)]


def _line(what: str, counts: Counter[str]) -> str:
    return f"  {what}: " + (", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none")
