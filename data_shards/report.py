"""Report text: sections and sentences, without being misled by abbreviations, decimals or numbered lists."""

from __future__ import annotations

import re

FINDINGS = ("FINDINGS", "FINDING", "BEFUND", "OBSERVATIONS", "REPORT")
IMPRESSION = ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS", "OPINION", "SUMMARY", "BEURTEILUNG")
OTHER = (
    "INDICATION", "INDICATIONS", "CLINICAL INDICATION", "CLINICAL INFORMATION", "CLINICAL HISTORY", "HISTORY", "REASON",
    "TECHNIQUE", "PROCEDURE", "PROTOCOL", "COMPARISON", "EXAMINATION", "EXAM", "CONTRAST", "RECOMMENDATION",
    "RECOMMENDATIONS", "ADDENDUM", "NOTIFICATION", "LIMITATIONS",
)  # fmt: skip
_NAMES = "|".join(re.escape(n) for n in sorted((*FINDINGS, *IMPRESSION, *OTHER), key=len, reverse=True))
# A heading is in capitals anywhere, or in any case where it begins a line; a colon follows.
_HEADING = re.compile(rf"(?:\b({_NAMES})|^[ \t]*((?i:{_NAMES})))[ \t]*:", re.MULTILINE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _words(
    "dr drs prof mr mrs ms st vs approx ca cf e.g i.e eg ie etc al fig figs no nos resp incl excl max min ant post lat "
    "sup inf med prox dist bilat temp hx dx rx tx fx pt pts wt ht est sq vol seg lt rt z.b d.h bzw ggf"
)
# Abbreviations that are also how a sentence ends: they end one before a capital letter.
_MAY_END = _words("no nos max min med pt pts vol seg lt rt inf sup ant post lat etc")
_BOUNDARY = re.compile(r"([.!?])([\"')\]]*)\s+")
_MARKER = re.compile(r"(?:\(?\d{1,2}[.)]|[-*•–])\s+")
_LINE_START = re.compile(r"\n\s*(?=(?:\(?\d{1,2}[.)]|[-*•–])\s)|\n\s*\n|\n\s*(?=[A-Z][A-Za-z /,&-]{1,40}:)")


def split_sections(text: str) -> dict[str, str]:
    """{"findings", "impression"} of a report by its headings ("" where there is none).

    The same section given twice is joined; text under other headings (technique, history, ...) is left out.
    """
    parts: dict[str, list[str]] = {"findings": [], "impression": []}
    found = list(_HEADING.finditer(text))
    for i, match in enumerate(found):
        name = (match.group(1) or match.group(2)).upper()
        body = text[match.end() : found[i + 1].start() if i + 1 < len(found) else len(text)].strip()
        if body and name in FINDINGS:
            parts["findings"].append(body)
        elif body and name in IMPRESSION:
            parts["impression"].append(body)
    return {name: "\n".join(bodies) for name, bodies in parts.items()}


def sentences(text: str) -> list[str]:
    """The sentences of a report or section, in order, on one line each, without list numbers and section headings.

    Numbers ("1.5 cm"), abbreviations ("approx. 3 mm", "e.g. cysts") and list numbers ("1. No mass.") do not split;
    blank lines, list items and "ORGAN:" lines do. Pieces without a letter are dropped.
    """
    out = []
    for block in _LINE_START.split(_HEADING.sub("\n\n", text)):
        out += _split(" ".join(block.split()))
    return out


def _split(line: str) -> list[str]:
    pieces, start = [], 0
    for match in _BOUNDARY.finditer(line):
        if _ends(line, start, match):
            pieces.append(line[start : match.end(2)])
            start = match.end()
    pieces.append(line[start:])
    stripped = (_unmark(p) for p in pieces)
    return [p for p in stripped if any(c.isalpha() for c in p)]


def _ends(line: str, start: int, match: re.Match[str]) -> bool:
    """Whether the full stop at `match` ends the sentence that began at `start`."""
    if match.group(1) != ".":
        return True
    before = line[start : match.start()].strip()
    word = before.rsplit(" ", 1)[-1].lstrip("(\"'[")
    follows = line[match.end() : match.end() + 1]
    if re.fullmatch(r"\(?\d{1,2}", before) or (word.isdigit() and before[: -len(word)].rstrip().endswith(":")):
        return False  # a list number
    if len(word) == 1 and word.isalpha() and word.isupper():
        return False  # an initial
    low = word.lower()
    if low in _ABBREVIATIONS:
        return low in _MAY_END and not follows.isdigit() and follows.isupper()
    return True


def _unmark(piece: str) -> str:
    piece = piece.strip()
    while match := _MARKER.match(piece):
        piece = piece[match.end() :].lstrip()
    return piece
