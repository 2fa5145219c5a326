"""What the words and numbers of a cell mean: labels, splits, spacings, and identifiers worth masking."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable

SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
PRESENT = {"1", "1.0", "true", "yes", "y", "present", "positive", "pos"}
ABSENT = {"0", "0.0", "false", "no", "n", "absent", "negative", "neg"}
UNKNOWN = {"", "-1", "-1.0", "nan", "na", "n/a", "null", "none", "unknown", "uncertain"}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_BETWEEN_NUMBERS = re.compile(r"[\s\[\]();,xX*\\]*")
# Masking "12" or "Li" wherever a report says them would cut findings and measures out of it; "Doe" is a name.
_SHORTEST_WORD, _SHORTEST_NUMBER = 3, 5


def label_value(cell: str) -> int | None:
    """1 present, 0 absent, None unknown. Raises: ValueError for any other word."""
    value = cell.strip().lower()
    if value in UNKNOWN:
        return None
    if value not in PRESENT | ABSENT:
        raise ValueError("neither present, absent nor unknown")
    return int(value in PRESENT)


def split_name(cell: str) -> str:
    """The split that a word means: train, val, test, or the word itself in small letters."""
    name = cell.strip().lower()
    return SPLIT_NAMES.get(name, name)


def drawn_split(group: str, val: float, test: float) -> str:
    """By a hash of the group (the patient): the same group in the same split in every table, whatever else it holds."""
    place = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big") / 2**64
    return "val" if place < val else "test" if place < val + test else "train"


def numbers(cell: str) -> list[float]:
    """All numbers of "1.5", "[0.7, 0.7]", "3x1x1" or "3;1;1". Raises: ValueError where there is anything else."""
    if _BETWEEN_NUMBERS.sub("", _NUMBER.sub("", cell)):
        raise ValueError("not a list of numbers")
    found = [float(n) for n in _NUMBER.findall(cell)]
    if not all(math.isfinite(n) for n in found):
        raise ValueError("not finite")
    return found


def identifiers(cells: Iterable[str]) -> tuple[str, ...]:
    """Those that can be masked in a text without cutting other words out of it, each once, in order.

    Left out are words shorter than three letters and numbers shorter than five digits.
    """
    kept = dict.fromkeys(cell.strip() for cell in cells)
    return tuple(c for c in kept if len(c) >= (_SHORTEST_NUMBER if c.isdigit() else _SHORTEST_WORD))
