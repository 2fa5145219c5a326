"""Which words of a study are its text: the whole report, one section, or its captions; the same on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.embedding import study_texts

TextKind = Literal["report", "findings", "impression", "captions"]
TEXT_KINDS: tuple[TextKind, ...] = ("report", "findings", "impression", "captions")


def text_identity(text: str) -> str:
    """Identity of a text: blake2b of it with white space collapsed."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).hexdigest()


def texts_of(texts: Mapping[str, Any], kind: TextKind) -> tuple[str, ...]:
    """The texts of one kind of a study's `texts`; none where it has no such section, which no other one replaces.

    report: as `embedding.study_texts`, the whole report, else its sections, else its heaviest caption.
    """
    if kind == "report":
        found = [study_texts(texts)]
    elif kind == "captions":
        found = [str(caption["text"]) for caption in texts.get("captions") or ()]
    else:
        found = [str(texts.get(kind) or "")]
    return tuple(dict.fromkeys(text.strip() for text in found if text.strip()))


@dataclass(frozen=True)
class Told:
    """Studies that have a text of one kind: `rows` of the shard set, the texts, and of which study (number in `rows`)
    each is."""

    rows: NDArray[np.int64]
    texts: tuple[str, ...]
    study_T: NDArray[np.int64]
    without: int

    @property
    def one_each(self) -> bool:
        return len(self.texts) == len(self.rows)


def told_studies(shards: Any, rows: Sequence[int] | NDArray, kind: TextKind) -> Told:
    """Read the texts of one kind of the studies `rows`."""
    kept: list[int] = []
    texts: list[str] = []
    study: list[int] = []
    for row in rows:
        found = texts_of(shards.json(int(row))["texts"], kind)
        if found:
            texts += found
            study += [len(kept)] * len(found)
            kept.append(int(row))
    return Told(
        np.asarray(kept, dtype=np.int64), tuple(texts), np.asarray(study, dtype=np.int64), len(rows) - len(kept)
    )
