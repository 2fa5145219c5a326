"""Identifiers in report text, replaced by marks: names, dates, numbers, addresses, and what the caller knows to be one.

Patterns, not a guarantee: what is masked and what cannot be is said in docs/reports.md. Marks ("[DATE]") survive the
sentence splitter and are single words to a reader; text that was de-identified before ("___", "[**Name**]", "XXXX") is
left as it is, and masking twice changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields

from data_shards.identifiers import MASKS, Mask
from data_shards.person_names import names


@dataclass(frozen=True)
class Counts:
    """How many pieces of text were masked, by kind; counts of several reports add up (`sum(counts, Counts())`)."""

    name: int = 0
    date: int = 0
    phone: int = 0
    id: int = 0
    email: int = 0
    url: int = 0
    address: int = 0
    known: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        """ "3 names, 1 date": for a line of the build's summary."""
        said = [f"{n} {kind}{'s' * (n != 1 and kind != 'known')}" for kind, n in asdict(self).items() if n]
        return ", ".join(said).replace("addresss", "addresses") or "nothing"


def deidentify(text: str, known: Iterable[str] = ()) -> tuple[str, Counts]:
    """`text` with identifiers replaced by [NAME], [DATE], [PHONE], [ID], [EMAIL], [URL], [ADDRESS]; their counts.

    known: identifiers of this study from elsewhere (the row's id, accession and patient name), masked as [ID] wherever
    they stand as whole words, in any case; of a name ("DOE^JOHN", "Doe, John") the parts in either order, and each part
    alone where it is capitalised. Shorter than three letters, four digits or four of both they would hit measurements,
    and are not looked for.
    """
    found = dict.fromkeys((f.name for f in fields(Counts)), 0)

    def replace(kind: str, mark: str, spans: Iterator[tuple[int, int]]) -> None:
        nonlocal text
        pieces, at = [], 0
        for start, end in spans:
            if start >= at and end > start:
                pieces += [text[at:start], mark]
                at = end
                found[kind] += 1
        text = "".join([*pieces, text[at:]])

    for literal in sorted({k.strip() for k in known if k}, key=lambda k: (-len(k), k)):
        for pattern in _literal(literal):
            replace("known", "[ID]", (m.span() for m in pattern.finditer(text)))
    for mask in MASKS:
        replace(mask.kind, f"[{mask.kind.upper()}]", _spans(mask, text))
    replace("name", "[NAME]", names(text))
    return text, Counts(**found)


def _spans(mask: Mask, text: str) -> Iterator[tuple[int, int]]:
    for match in mask.pattern.finditer(text):
        if mask.keep is None or not mask.keep(match):
            yield match.span("it") if "it" in mask.pattern.groupindex else match.span()


def _literal(known: str) -> Iterator[re.Pattern[str]]:
    letters, digits = sum(c.isalpha() for c in known), sum(c.isdigit() for c in known)
    if letters < 3 and digits < 4 and not (letters and digits and len(known) > 3):
        return
    parts = [p for p in re.split(r"[\s,^=]+", known) if p]
    gap = r"[\s,^]+"
    for order in (parts, parts[::-1]) if len(parts) > 1 else (parts,):
        yield re.compile(rf"(?<!\w){gap.join(map(re.escape, order))}(?!\w)", re.IGNORECASE)
    if digits or len(parts) == 1:
        return
    for part in parts:
        if len(part) >= 3:
            spellings = {re.escape(s) for s in (part.upper(), part.capitalize(), part.title(), part) if s[0].isupper()}
            if spellings:
                yield re.compile(rf"(?<!\w)(?:{'|'.join(sorted(spellings))})(?!\w)")
