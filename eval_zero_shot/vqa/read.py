"""A file of closed questions to items. Errors name lines, never questions, files or patients. Never imports torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from eval_zero_shot.errors import EvalError, unreadable
from eval_zero_shot.vqa.items import Item, ItemFile, Rejected, Rows
from eval_zero_shot.vqa.mappings import MAPPINGS


def read_items(path: str | Path, mapping: str = "own") -> ItemFile:
    """Items of a file: JSON lines, a JSON list (or an object whose `questions` is one), or CSV, by its content.

    Of our own form every row must be right. A published benchmark is as it is: rows that cannot be scored are left out
    and counted by reason.

    Raises:
        EvalError: not readable, a wrong row of our own form, or no item is left.
    """
    path = Path(path).expanduser()
    rows, digest = _rows(path)
    items: list[Item] = []
    reasons: Counter[str] = Counter()
    wrong: list[str] = []
    for key, make in MAPPINGS[mapping].read(rows):
        try:
            items.append(make())
        except Rejected as reason:
            reasons[str(reason)] += 1
            wrong.append(f"{key}: {reason}")
    if mapping == "own" and wrong:
        raise EvalError(
            f"{len(wrong)} of {len(rows)} items cannot be scored; " + "; ".join(f"line {w}" for w in wrong[:5]),
            why="an accuracy over the others would be of another test",
            fix="correct these lines, or take them out",
        )
    if not items:
        why = "; ".join(f"{n} {reason}" for reason, n in reasons.most_common(5)) or "the file is empty"
        raise EvalError(
            f"no closed question in the items ({why})",
            why="there is nothing to score",
            fix="check --mapping: it names the benchmark whose fields the file has",
        )
    return ItemFile(tuple(items), dict(reasons), digest, mapping)


def _rows(path: Path) -> tuple[Rows, str]:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("file of items", path, error, why="there is nothing to ask", fix="check --items") from None
    digest = hashlib.sha256(raw).hexdigest()
    if path.suffix.lower() == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline=""))), digest
    try:
        whole = json.loads(text)
        rows = whole.get("questions", [whole]) if isinstance(whole, dict) else whole
        rows = [whole] if isinstance(rows, dict) else rows  # a single line, whose `questions` are of one image
    except ValueError:
        rows = [_line(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise EvalError("the items are not a list of JSON objects", why="no field has a name", fix="check --items")
    return rows, digest


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise EvalError(
            f"line {number} of the items is not JSON", why="its question would be lost", fix="one JSON object a line"
        ) from None
