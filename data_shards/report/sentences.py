"""A report cut into sentences, without being misled by abbreviations, decimals, numbered lists or masks."""

from __future__ import annotations

import re
from itertools import pairwise

from .abbreviations import (
    AMOUNTS,
    CLASSES,
    GERMAN,
    MAY_END,
    MONTHS,
    NEVER,
    NUMBERED,
    ORDINAL_BEFORE,
    REGIONS,
    SIDES,
    UNFINISHED,
)  # fmt: skip
from .headings import find_headings
from .names import words

# What de-identification leaves behind: [**Name**], <DATE>, [DATE]. XXXX and ___ need no care.
_MASK = re.compile(r"\[\*\*[^\[\]]{0,100}\*\*\]|<[A-Z][A-Z_ -]*>|\[[A-Z][A-Z_ -]*\]")
_HIDDEN = "\ue000"  # stands for a mask: neither a stop nor a letter
_BOUNDARY = re.compile(r"([.!?])([\"')\]]*)(?:\s+|(?<=[a-z)][.])(?=[A-ZÄÖÜÉ][a-zäöüé]))")
_ITEM = r"(?:\(?\d{1,2}(?:[.)](?=\s)|\.(?=[A-Z])|\)(?=\S))|[-*•–▪●◦](?=\s)|\#{1,6}(?=\s))"
_MARKER = re.compile(rf"{_ITEM}\s*")
_BREAK = re.compile(rf"\n\s*(?={_ITEM})|\n\s*\n|\n\s*(?=[^\W\d_][\w /,&()-]{{1,40}}:)|\s[•▪●◦](?=\s)")
_NUMBER = re.compile(r"(?<=\s)\(?(\d{1,2})[.)]\s+(?=[^\W\d_])")
_LEVEL = re.compile(r"[CTLS]\d{1,2}(?:[-/–][CTLS]?\d{1,2})?")
_SIZE = re.compile(r"\d+(?:[.,]\d+)?\s?(?:mm|cm|ml|cc|HU|%)(?!\w)")
_MARK_NEXT = re.compile(rf"X{{3,}}|_{{2,}}|{_HIDDEN}")


def sentences(text: str) -> list[str]:
    """The sentences of a report or section, in order, on one line each, without list numbers and section headings.

    Numbers ("1.5 cm"), abbreviations ("approx. 3 mm", "z. B."), list numbers ("1. No mass.") and de-identification
    marks ("[**Dr. No**]") do not split; blank lines, list items, "ORGAN:" lines, and lines that were ended before they
    were full do. "ORGAN:" on a line of its own is joined with the sentence that follows. Pieces without a letter are
    dropped.
    """
    return [sentence for paragraph in paragraphs(text) for sentence in paragraph]


def paragraphs(text: str) -> list[list[str]]:
    """The same sentences by paragraph: a blank line or a section heading begins a new one."""
    out: list[list[str]] = []
    at = 0
    for start, end in [*((h.start, h.end) for h in find_headings(text)), (len(text), len(text))]:
        body = text[at:start].replace(_HIDDEN, " ")
        masks = [" ".join(mask.split()) for mask in _MASK.findall(body)]
        hidden = _MASK.sub(_HIDDEN, body)
        out.append([])
        before = 0
        for first, last in _blocks(hidden):
            if hidden.count("\n", before, first) > 1 and not (out[-1] and out[-1][-1].endswith(":")):
                out.append([])
            before = last
            for piece in _split(" ".join(hidden[first:last].split())):
                for _ in range(piece.count(_HIDDEN)):
                    piece = piece.replace(_HIDDEN, masks.pop(0), 1)
                piece = _unmark(piece)
                if not any(c.isalpha() for c in piece):
                    continue
                if out[-1] and out[-1][-1].endswith(":"):  # "LIVER:" on a line of its own
                    piece = f"{out[-1].pop()} {piece}"
                out[-1].append(piece)
        at = end
    return [paragraph for paragraph in out if paragraph]


def _blocks(text: str) -> list[tuple[int, int]]:
    """Spans that no sentence crosses."""
    cuts = [(m.start(), m.end()) for m in _BREAK.finditer(text)]
    if "\n" in text:
        cuts = sorted({*cuts, *_short_lines(text)})
    spans, at = [], 0
    for start, end in cuts:
        if start >= at:
            spans.append((at, start))
            at = end
    return [*spans, (at, len(text))]


def _short_lines(text: str) -> list[tuple[int, int]]:
    """Line breaks made on purpose: the next line begins a sentence, and its first word would have fitted."""
    lines = [(m.start(), m.end()) for m in re.finditer(r"[^\n]+", text)]
    width = max((len(text[a:b].strip()) for a, b in lines), default=0)
    narrow = width <= 40  # nobody wraps prose as narrow as that
    cuts = []
    for (a, b), (c, d) in pairwise(lines):
        line, following = text[a:b].strip(), text[c:d].strip()
        if not line or not following or not (following[0].isupper() or following[0].isdigit()):
            continue
        fits = narrow or len(line) + 1 + len(following.split(" ", 1)[0]) <= width
        last = line.rsplit(" ", 1)[-1].rstrip(".").casefold()
        if fits and line[-1] not in ",-(/:" and last not in UNFINISHED and last not in NEVER:
            cuts.append((b, c))
    return cuts


def _split(flat: str) -> list[str]:
    """The pieces of one block, on one line, with masks hidden."""
    german = not GERMAN.isdisjoint(flat.casefold().split())
    pieces, start, listed = [], 0, _first_number(flat)
    ends = [(m.start(), m.end(2), m.end(), m) for m in _BOUNDARY.finditer(flat)]
    ends += [(m.start(), m.start(), m.start(), m) for m in _NUMBER.finditer(flat)]
    for _, end, following, match in sorted(ends, key=lambda e: (e[0], e[2])):
        if end <= start and following <= start:
            continue
        if match.re is _NUMBER:
            number = int(match.group(1))
            before = flat[start : match.start()].strip()
            if not _next_item(before, number, listed, "." in match.group()):
                continue
            listed = number
        elif not _ends(flat, start, match, german):
            continue
        pieces.append(flat[start:end])
        start = following
        if match.re is not _NUMBER:
            listed = _first_number(flat[start : start + 5]) or listed
    return [*pieces, flat[start:]]


def _first_number(line: str) -> int:
    match = re.match(r"\(?(\d{1,2})[.)]\s", line)
    return int(match.group(1)) if match else 0


def _next_item(before: str, number: int, listed: int, stop: bool) -> bool:
    """Whether a number inside a line begins an item: the next of a list ("1. Mass 2. Cyst"), or the first under a
    region ("Chest 1. Clear")."""
    words = before.casefold().split()
    if not words or not any(c.isalpha() for c in words[-1]) or (stop and words[-1].rstrip(".,:") in NUMBERED):
        return False
    if number == 1:
        return len(words) <= 3 and words[-1] in REGIONS
    return number == listed + 1 and before[-1] not in ",;(-/"


def _ends(line: str, start: int, match: re.Match[str], german: bool) -> bool:
    """Whether the stop at `match` ends the sentence that began at `start`."""
    rest = line[match.end() :]
    follows = rest[:1]
    before = line[start : match.start()].rstrip()
    if match.group(1) != ".":
        # "? pneumonia" asks about what follows.
        return not (match.group(1) == "?" and (not before or line[match.start() - 1] == " ") and follows.islower())
    if not before:
        return True  # a stop too many
    word = before.rsplit(" ", 1)[-1].lstrip("(\"'[")
    earlier = before[: -len(word)].rstrip() if word else before
    previous = earlier.rsplit(" ", 1)[-1]
    starts_next = follows.isupper() and not _MARK_NEXT.match(rest)
    if re.fullmatch(r"\(?\d{1,2}", before) or (word.isdigit() and earlier.endswith(":")):
        return False  # a list number
    if _LEVEL.fullmatch(word) and (not earlier or follows.islower()):
        return False  # "L4-5. Disc bulge.": the level says where
    if before.endswith(".") and follows.islower():
        return False  # "...": a pause
    if word.isdigit():
        return _number_ends(word, previous, rest, german)
    if len(word) == 1 and word.isalpha():
        return _letter_ends(word, previous, earlier, rest, starts_next)
    low = re.split("['’]", word)[-1].casefold()
    if low in SIDES:
        return starts_next and previous[:1].isupper()
    if (
        low in NEVER
        or (low == "med" and previous in ("Dr.", "Prof."))
        or (low in ("ex", "ej") and previous in ("p.", "P."))
    ):
        return False
    if low in MAY_END or re.fullmatch(r"[^\W\d_](?:\.[^\W\d_])+", word):
        return starts_next
    return not (follows.islower() and line.count("(", start, match.start()) > line.count(")", start, match.start()))


def _number_ends(word: str, previous: str, rest: str, german: bool) -> bool:
    if _SIZE.match(rest) and previous.casefold() not in NUMBERED - AMOUNTS and len(word) <= 2:
        return False  # "2. 5 cm"
    if len(word) <= 2 and re.match(r"\d{1,2}\.\s?\d{2,4}\b|(?:19|20)\d{2}\b", rest):
        return False  # "12. 3. 2020"
    if len(word) <= 2 and rest.split(" ", 1)[0].rstrip(".,").casefold() in MONTHS:
        return False
    return not (german and len(word) <= 2 and previous.casefold() in ORDINAL_BEFORE and rest[:1].isalpha())


def _letter_ends(word: str, previous: str, earlier: str, rest: str, starts_next: bool) -> bool:
    """A single letter with a stop: an initial, a part of "z. B.", a class ("hepatitis C."), "a. m."."""
    if re.match(r"[^\W\d_]{1,2}\.(?:\s|$|,)", rest) and not (word.isupper() and previous.casefold() in CLASSES):
        return False  # "z. B.", "J. R. Smith"
    if previous.endswith(".") and len(previous) <= 3:
        return starts_next and (previous + word).casefold() in ("a.m", "p.m", "o.b")
    if word.islower():
        return starts_next
    return starts_next and (previous.casefold() in CLASSES or (previous.islower() and previous not in _BEFORE_INITIAL))


_BEFORE_INITIAL = words("by with from of to and von und mit par et por con y de für dr prof the an")


def _unmark(piece: str) -> str:
    piece = piece.strip()
    while match := _MARKER.match(piece):
        piece = piece[match.end() :].lstrip()
    return piece
