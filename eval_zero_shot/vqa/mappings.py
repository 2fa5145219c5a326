"""Published closed-VQA benchmarks: their fields to ours. Nothing is downloaded, and nothing is unpickled.

    name        file                         image        options                               grouped by
    pmc_vqa     CSV                          Figure_path  Choice A ... Choice D                 figure
    slake       JSON list                    img_name     see `slake`                           image
    vqa_rad     JSON list                    image_name   Yes, No                               image
    deeptumor   JSON lines, or `questions`   image_id     read from mc_question ("A: ... B:")   volume
    ubench      JSON lines, a line an image  image_id     questions.TYPE.options                image

docs/vqa.md says which of these fields were checked, and where.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eval_zero_shot.vqa.items import Item, Map, Rejected, Rows, make_item, own_items

Makers = Iterator[tuple[str, Callable[[], Item]]]
OPEN = "open question"
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Published:
    """read: rows to items. image: how the image field names a file below --images; {} is the field."""

    read: Map
    image: tuple[str, ...] = ("{}",)


def _each(rows: Rows, make: Callable[[str, Mapping[str, Any]], Item]) -> Makers:
    for number, row in enumerate(rows, 1):
        yield f"{number:06d}", lambda key=f"{number:06d}", row=row: make(key, row)  # type: ignore[misc]


def pmc_vqa(rows: Rows) -> Makers:
    """Choices A to D; `Answer_label`, or a letter in `Answer`, names the right one; else `Answer` is its text."""

    def make(key: str, row: Mapping[str, Any]) -> Item:
        given = {letter: row.get(f"Choice {letter}") for letter in "ABCD"}
        options = [
            re.sub(rf"^\s*{letter}\s*[:.)]\s*", "", text) for letter, text in given.items() if text and text.strip()
        ]
        letters = [letter for letter, text in given.items() if text and text.strip()]
        label = str(row.get("Answer_label") or row.get("Answer") or "").strip()
        if label in letters:
            answer: Any = letters.index(label)
        else:
            answer = re.sub(r"^\s*[A-D]\s*[:.)]\s*", "", str(row.get("Answer") or ""))
        return make_item(key, options, answer, row.get("Figure_path"), row.get("Question"))

    return _each(rows, make)


def slake(rows: Rows) -> Makers:
    """English questions with `answer_type` CLOSED. The file names no options. Where the answer is yes or no, these are
    the options; else they are all answers that English closed questions of the same `content_type` have in this file,
    yes and no left out. (They come from the scored file, the same for every model.)"""
    vocabulary: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if _slake_closed(row) and (said := _text(row.get("answer"))).casefold() not in ("yes", "no", ""):
            vocabulary[_text(row.get("content_type"))].setdefault(said.casefold(), said)

    def make(key: str, row: Mapping[str, Any]) -> Item:
        if row.get("q_lang", "en") != "en":
            raise Rejected("not English")
        if not _slake_closed(row):
            raise Rejected(OPEN)
        answer, kind = _text(row.get("answer")), _text(row.get("content_type"))
        words = vocabulary[kind]
        options = ["Yes", "No"] if answer.casefold() in ("yes", "no") else [words[w] for w in sorted(words)]
        return make_item(key, options, answer, row.get("img_name"), row.get("question"), category=kind)

    return _each(rows, make)


def _slake_closed(row: Mapping[str, Any]) -> bool:
    return _text(row.get("answer_type")).upper() == "CLOSED" and row.get("q_lang", "en") == "en"


def vqa_rad(rows: Rows) -> Makers:
    """Questions with `answer_type` CLOSED whose answer is yes or no; the file names no options for other answers."""

    def make(key: str, row: Mapping[str, Any]) -> Item:
        if _text(row.get("answer_type")).upper() != "CLOSED":
            raise Rejected(OPEN)
        answer = _text(row.get("answer"))
        if answer.casefold() not in ("yes", "no"):
            raise Rejected("closed, but neither yes nor no: the file names no options")
        kind = _text(row.get("question_type"))
        return make_item(key, ["Yes", "No"], answer, row.get("image_name"), row.get("question"), category=kind)

    return _each(rows, make)


def deeptumor(rows: Rows) -> Makers:
    """Multiple choice over CT: options stand in `mc_question` after "A:", "B:"...; `correct_option` names one."""

    def make(key: str, row: Mapping[str, Any]) -> Item:
        if not row.get("mc_question"):
            raise Rejected(OPEN)
        stem, options = lettered(_text(row["mc_question"]))
        letter = _text(row.get("correct_option")).upper().rstrip(".:)")
        if len(letter) != 1 or letter not in LETTERS[: len(options)]:
            raise Rejected("the answer is not among the options")
        kind = _text(row.get("question_subtype") or row.get("question_type"))
        question = row.get("question") or stem
        return make_item(key, options, LETTERS.index(letter), row.get("image_id"), question, category=kind)

    return _each(rows, make)


def lettered(text: str) -> tuple[str, list[str]]:
    """("Which? A: one B: two") -> ("Which?", ["one", "two"]); letters must come in order, each once."""
    cuts = []
    at = 0
    for letter in LETTERS:
        found = re.compile(rf"(?:(?<=\s)|^){letter}\s*[:.)]\s").search(text, at)
        if found is None:
            break
        cuts.append(found)
        at = found.end()
    ends = [cut.start() for cut in cuts[1:]] + [len(text)]
    options = [text[cut.end() : end].strip(" ,;") for cut, end in zip(cuts, ends, strict=True)] if cuts else []
    return text[: cuts[0].start()].strip() if cuts else text, options


def ubench(rows: Rows) -> Makers:
    """A line an image. `questions`: TYPE -> {question, options, answer, answer_idx}, or null. `captions`: where it is
    TYPE -> a sentence for each option these are used; any other layout is passed over."""
    for number, row in enumerate(rows, 1):
        asked = row.get("questions")
        for kind, entry in sorted(asked.items()) if isinstance(asked, dict) else ():
            if entry is not None:
                key = f"{number:06d}.{kind}"
                yield key, lambda key=key, row=row, kind=kind, entry=entry: _ubench(key, row, kind, entry)  # type: ignore[misc]


def _ubench(key: str, row: Mapping[str, Any], kind: str, entry: Any) -> Item:
    if not isinstance(entry, dict) or not entry.get("options"):
        raise Rejected(OPEN)
    options = entry["options"]
    answer = entry["answer"] if entry.get("answer") is not None else entry.get("answer_idx")
    captions = row.get("captions")
    own = captions.get(kind) if isinstance(captions, dict) else None
    sentences = own if isinstance(own, list) and len(own) == len(options) else ()
    image = row["image"] if isinstance(row.get("image"), str) else row.get("image_id")
    return make_item(key, options, answer, image, entry.get("question"), captions=sentences, category=kind)


def _text(value: Any) -> str:
    return " ".join(str(value if value is not None else "").split())


MAPPINGS = {
    "own": Published(own_items),
    "slake": Published(slake, ("{}", "imgs/{}")),
    "vqa_rad": Published(vqa_rad),
    "pmc_vqa": Published(pmc_vqa),
    "deeptumor": Published(deeptumor, ("{}/ct.nii.gz", "{}.nii.gz", "{}")),
    "ubench": Published(ubench, ("{}", "{}.png", "{}.jpg", "{}.tif")),
}
