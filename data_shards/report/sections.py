"""A report cut at its headings."""

from __future__ import annotations

import re

from .headings import find_headings
from .names import SECTIONS

# Sections whose own text is short: a paragraph set off from it by a blank line can be findings without a heading.
_SHORT = ("history", "technique", "comparison", "examination")
_RULES = re.compile(r"\n[ \t]*[-=*]{3,}[ \t]*(?=\n|$)")  # lines drawn between sections
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


def split_sections(text: str) -> dict[str, str]:
    """The text of every section of names.SECTIONS, "" where the report has none; headings are left out.

    Every other word of the report is in exactly one section. The same section given twice is joined by a line
    break. "history" holds indications and clinical questions, "other" what is under a foreign heading (signatures,
    notifications) and what stands before the first heading.

    Where no heading says FINDINGS, the findings are the text without a heading: all of a report without headings,
    what stands before the first one ("The lungs are clear. IMPRESSION: ..."), or else the paragraphs that a blank line
    sets off from the last section before the impression.
    """
    parts: dict[str, list[str]] = {name: [] for name in SECTIONS}
    found = find_headings(text)
    named = any(h.section == "findings" for h in found)
    bodies = [("title", text[: found[0].start if found else len(text)])]
    bodies += [
        (heading.section, text[heading.end : following])
        for heading, following in zip(found, [*(h.start for h in found[1:]), len(text)])
    ]
    bodies = [(section, cut) for section, body in bodies if (cut := _RULES.sub("", body).strip())]
    loose = any(section == "report" or (section == "title" and _is_body(body)) for section, body in bodies)
    if not named and not loose:
        bodies = _set_off(bodies)
    for section, body in bodies:
        if section == "report" or (section == "title" and (_is_body(body) or not found)):
            section = "other" if named else "findings"
        elif section == "title":
            section = "other"
        parts[section].append(body)
    return {name: "\n".join(bodies) for name, bodies in parts.items()}


def _is_body(text: str) -> bool:
    """Whether text without a heading says something, rather than being the title of the report."""
    return len(text.split()) >= 4 and any(c.islower() for c in text) and bool(re.search(r"\w[.!]", text))


def _set_off(bodies: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Give the paragraphs after a blank line in the last short section before the impression to the findings."""
    last = next((i for i, (section, _) in enumerate(bodies) if section == "impression"), len(bodies)) - 1
    while last >= 0 and bodies[last][0] not in _SHORT:
        last -= 1
    if last < 0:
        return bodies
    section, body = bodies[last]
    own, *rest = _PARAGRAPH.split(body, maxsplit=1)
    if not rest:
        return bodies
    return [*bodies[:last], (section, own), ("findings", rest[0].strip()), *bodies[last + 1 :]]
