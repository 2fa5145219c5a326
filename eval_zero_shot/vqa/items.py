"""Closed questions about images: what an item is, and how a file of items is read. Never imports torch.

Our own form is JSON lines, one question a line:

    {"image": "case1.png", "question": "Which organ is enlarged?", "options": ["Liver", "Spleen"], "answer": "Spleen"}

image: a file below --images (an image, or a volume), or with --data the key of a study. answer: an option's text or its
    number from 0. Optional: `captions` (a sentence for each option, in their order), `category` (accuracy is also given
    for each), `patient` (what is resampled together; the image where it is missing), `n_options` (checked).

Published benchmarks: `eval_zero_shot.vqa.mappings`. Files: `eval_zero_shot.vqa.read`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KNOWN = ("image", "question", "options", "answer", "captions", "category", "patient", "n_options", "id")


@dataclass(frozen=True)
class Item:
    """One closed question.

    key: the number of its line or row (and what else tells it apart). answer: index of the right option. captions: one
    for each option, or none: `eval_zero_shot.vqa.captions` says them. group: what is resampled together, the patient or
    else the image.
    """

    key: str
    image: str
    question: str
    options: tuple[str, ...]
    answer: int
    captions: tuple[str, ...] = ()
    category: str = ""
    group: str = ""


class Rejected(Exception):
    """A row that is no closed question that can be scored; the text is the reason, and is counted."""


@dataclass(frozen=True)
class ItemFile:
    """Items in the order of the file. rejected: how many rows were left out, by reason. sha256: of the file."""

    items: tuple[Item, ...]
    rejected: Mapping[str, int]
    sha256: str
    mapping: str


Rows = Sequence[Mapping[str, Any]]
Map = Callable[[Rows], Iterable[tuple[str, Callable[[], Item]]]]


def make_item(
    key: str,
    options: Sequence[Any],
    answer: Any,
    image: Any,
    question: Any,
    *,
    captions: Sequence[Any] = (),
    category: Any = "",
    group: Any = None,
) -> Item:
    """A checked item. answer: an option's text (capitals and spaces at its ends do not matter) or index.

    Raises Rejected with the reason.
    """
    if not isinstance(options, list | tuple) or not all(isinstance(o, str | int | float) for o in options):
        raise Rejected("options are not a list of texts")
    said = tuple(" ".join(str(option).split()) for option in options)
    if len(said) < 2:
        raise Rejected("one option only" if said else "no options")
    folded = [option.casefold() for option in said]
    if "" in folded:
        raise Rejected("an option is blank")
    if len(set(folded)) < len(folded):
        raise Rejected("two options are the same")
    if isinstance(answer, bool) or not isinstance(answer, int):
        wanted = " ".join(str(answer if answer is not None else "").split()).casefold()
        if wanted not in folded:
            raise Rejected("the answer is not among the options")
        answer = folded.index(wanted)
    if not 0 <= answer < len(said):
        raise Rejected("the answer is not among the options")
    if not isinstance(question, str) or not question.strip():
        raise Rejected("no question")
    if not isinstance(image, str) or not image.strip():
        raise Rejected("no image")
    sentences = tuple(" ".join(str(caption).split()) for caption in captions or ())
    if sentences and (len(sentences) != len(said) or len(set(sentences)) < len(sentences) or "" in sentences):
        raise Rejected("captions are not one different sentence for each option")
    return Item(
        key, image.strip(), " ".join(question.split()), said, answer, sentences, str(category or "").strip(),
        str(group if group not in (None, "") else image),
    )  # fmt: skip


def own_items(rows: Rows) -> Iterable[tuple[str, Callable[[], Item]]]:
    """Our own form: see the head of this file."""
    for number, row in enumerate(rows, 1):
        yield f"{number:06d}", lambda number=number, row=row: _own(f"{number:06d}", row)  # type: ignore[misc]


def _own(key: str, row: Mapping[str, Any]) -> Item:
    if unknown := sorted(set(row) - set(KNOWN)):
        raise Rejected(f"unknown field {unknown[0]!r} (known: {', '.join(KNOWN)})")
    options = row.get("options")
    if "n_options" in row and row["n_options"] != len(options or ()):
        raise Rejected("n_options is not the number of options")
    return make_item(
        key, options if options is not None else (), row.get("answer"), row.get("image"), row.get("question"),
        captions=row.get("captions") or (), category=row.get("category"), group=row.get("patient"),
    )  # fmt: skip


def items_sha256(items: Sequence[Item], captions: Sequence[Sequence[str]]) -> str:
    """Of what was asked: two results may be compared where this is equal. Order of options does not matter."""
    told = [
        [i.key, i.image, i.question, sorted(zip(i.options, c, strict=True)), i.options[i.answer]]
        for i, c in zip(items, captions, strict=True)
    ]
    return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()
