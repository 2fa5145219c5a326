"""Where the headings of a report are: names of sections in a place and a spelling that prose would not give them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from .names import BEFORE, BY_NAME, GENERIC_BEFORE, WEAK, fold, words


class Heading(NamedTuple):
    """text[start:end] is the heading with its decoration and colon; `section` one of names.SECTIONS or "title"."""

    start: int
    end: int
    section: str


def _patterns() -> dict[str, re.Pattern[str]]:
    """First word -> the names that begin with it, longest first."""
    first: dict[str, list[str]] = {}
    for name in sorted(BY_NAME, key=len, reverse=True):
        first.setdefault(_WORD.match(name).group(), []).append(name)  # type: ignore[union-attr]
    space = r"(?:[ \t]+|[ \t]*\n[ \t]*)"
    return {
        word: re.compile("(?:" + "|".join(re.escape(n).replace(r"\ ", space) for n in names) + r")(?![^\W_]|')")
        for word, names in first.items()
    }


_WORD = re.compile(r"[^\W\d_]+")
_BY_FIRST = _patterns()
_WORD_BEFORE = re.compile(r"(?<!\w)([^\W\d_][\w/'-]*)[ \t]+$")
_NUMBER_BEFORE = re.compile(
    r"(?<!\S)\(?\d{1,2}\)[ \t]+$|(?<=[.;:])[ \t]+\d{1,2}\.[ \t]+$|(?:<(?:h\d|p|b|strong|div)>)+$"
)
_MODALITY = re.compile(r"\b(?:CT|MR|MRT|PET|US|Röntgen)-$")
# What may stand before a heading on its line: markdown, a bold mark, a list number.
_TAG = r"</?(?:b|strong|u|i|em|h[1-6]|p|br|div|span|li|ul)\b[^<>\n]{0,80}>"
_BOLD = rf"(?:[*_=\[~]{{1,6}}|{_TAG})*[ \t]*"
_LEAD = re.compile(
    r"[ \t]*(?:#{1,6}[ \t]*|>[ \t]*)?"
    r"(?:(?:\(?(?:\d{1,2}|IX|IV|V?I{1,3}|V|X|[A-Ha-h])[.)]|[-•–])[ \t]+)?" + _BOLD
)
_MARKS = re.compile(r"[ \t]*" + _BOLD)  # after another heading on the line
_PARENTHESIS = re.compile(r"[ \t]*\([^()\n]{1,60}\)")
_EXTRA = re.compile(r"(?:[ \t]*[-–/&,][ \t]*|[ \t]+)[^\W\d_][\w/'-]*")
_CLOSE = re.compile(rf"(?:[*_=\]~]{{1,6}}|{_TAG})*")
_COLON = re.compile(r"(?:[*_\]]{1,3}|</\w+>)*\s{0,3}[:：](?:[*_]{1,3}(?=\s|$|\w)|</\w+>|[-=])*")
_DASH = re.compile(r"(?:[ \t]*[-–—=]+[ \t]+|[ \t]*[-=]{3,}[ \t]*$|;[ \t]|[ \t]*>+[ \t])", re.MULTILINE)
_LINE_END = re.compile(r"\.?[ \t]*(?:\n|$)")
_RULE = re.compile(r"[ \t]*[-=_*~]{3,}[ \t]*(?:\n|$)")  # a line of dashes under a heading
# After a name without a colon these go on with a sentence ("FINDINGS ARE"); before one they ask for it ("no Findings").
_GOES_ON = words("""
    no not any the this that its with without of from for in on and or to as is are was were be been has have had
    may suggest suggests suggesting consistent compatible seen at by include includes which who such likely
    concerning worrisome represent representing indicate indicative discussed described above communicated called
    reported relayed unchanged correlate der die das den dem des mit im vom zum ist sind und le la les du de avec
    est sont et el los las con son es y en
""")
_ASKS = words("""
    no not any the this these those its his her of with without our a an der die das den dem des ein eine einem kein
    keine keinen ohne mit im vom zum le la les un une du de sans avec aucun aucune el los las una sin con en
""")
_ACRONYM = re.compile(r"(?:CT|CTA|MR|MRI|PA|AP|US|PET|XR|CXR|XXXX|RAO|LAO|IV)\b")


def find_headings(text: str) -> list[Heading]:
    """The headings of a report in order, without overlap."""
    scene = _Scene(text)
    found: list[Heading] = []
    for heading in scene.candidates():
        if not found or heading.start >= found[-1].end:
            found.append(heading)
            scene.last_end = heading.end
    return found


class _Scene:
    """One text with what is asked of it often."""

    def __init__(self, text: str) -> None:
        self.text, self.folded, self.last_end = text, fold(text), 0

    @cached_property
    def shouts(self) -> bool:
        """Written in capitals throughout."""
        letters = [c for c in self.text[:4000] if c.isalpha()]
        return sum(map(str.islower, letters)) < 0.15 * len(letters)

    @cached_property
    def whispers(self) -> bool:
        """Written without capitals."""
        return self.text == self.text.lower()

    def candidates(self) -> Iterator[Heading]:
        for word in _WORD.finditer(self.folded):
            pattern = _BY_FIRST.get(word.group())
            if pattern is None or word.start() < self.last_end or _joined(self.folded, word.start()):
                continue
            if match := pattern.match(self.folded, word.start()):
                heading = self._judge(match.start(), match.end())
                if heading:
                    yield heading

    def _judge(self, start: int, end: int) -> Heading | None:
        text = self.text
        name = " ".join(self.folded[start:end].split())
        section, language = BY_NAME[name]
        weak = name in WEAK
        spelled = text[start:end]
        earlier = self._with_words_before(start, spelled)
        line = text.rfind("\n", self.last_end, start) + 1 or self.last_end
        numbered = _LEAD if line == 0 or text[line - 1] == "\n" else _MARKS
        if numbered.fullmatch(text, line, earlier) or self._opens(earlier):
            start = earlier
        lead = numbered.fullmatch(text, line, start)
        decorated = bool(lead) and any(c in "#*_<[=~" for c in text[line:start])
        at_line = bool(lead)
        begin = line if at_line else start
        opens = self._opens(begin)
        style = "caps" if spelled.isupper() else "title" if spelled[0].isupper() else "lower"
        if style == "lower" and self.whispers:
            style = "title"
        if style == "caps" and self.shouts:
            style = "title"
        end, colon, dash, alone = self._ending(end, style, at_line)
        follows = text[end : end + 60].lstrip()
        runs_on = follows[:1].islower() and fold(follows).split(" ", 1)[0] in ("of", "on", "de", "der", "des", "du")
        prose = style == "lower" or (self.shouts and style == "title" and weak)
        if colon and at_line:
            good = style == "caps" or (not runs_on and (style == "title" or decorated or opens))
        elif colon and style == "caps":
            good = not self._asked_for(start)
        elif colon:
            alien = weak or language == "de" or self.whispers
            good = style == "title" and not runs_on and (opens or not (alien or self._asked_for(start)))
        elif alone:
            empty = not self._before(begin).strip() and self.last_end > 0 and weak
            wrapped = follows[:1].islower() and not self._after_blank(begin)
            good = at_line and not empty and (decorated or style == "caps" or (opens and not wrapped and not prose))
        elif dash:
            good = not prose and not weak and (opens or at_line)
        else:
            good = not weak and self._begins_sentence(name, style, language, end, opens, at_line)
        if not at_line and (number := _NUMBER_BEFORE.search(text, max(self.last_end, begin - 20), begin)):
            begin = number.start()
        return Heading(begin, end, section) if good else None

    def _with_words_before(self, start: int, spelled: str) -> int:
        """Back over "CT", "FINAL", ... in the same spelling, as far as the line's or the sentence's beginning."""
        best = at = (
            start - len(match.group()) if (match := _MODALITY.search(self.text, max(0, start - 10), start)) else start
        )
        while match := _WORD_BEFORE.search(self.text, max(self.last_end, at - 30), at):
            word = match.group(1)
            if fold(word) not in BEFORE or (spelled.isupper() and not word.isupper()):
                break
            at = match.start()
            if (spelled.isupper() or word[0].isupper()) and fold(word) not in GENERIC_BEFORE:
                best = at
        return best

    def _before(self, at: int) -> str:
        """As much of the section so far as can matter."""
        return self.text[max(self.last_end, at - 100) : at]

    def _opens(self, begin: int) -> bool:
        """Whether a sentence, a paragraph or a section has just ended before `begin`."""
        between = self._before(begin)
        stripped = between.rstrip(" \t\n*_-=")
        if not stripped:
            return True
        return stripped[-1] in ".:;!?)]>|" or between[len(stripped) :].count("\n") > 1

    def _after_blank(self, begin: int) -> bool:
        between = self._before(begin)
        return not between.strip() or between[len(between.rstrip()) :].count("\n") > 1

    def _asked_for(self, start: int) -> bool:
        """Whether the words before ask for more: "there are no Findings:"."""
        before = self._before(start).rstrip()
        last = re.search(r"([^\W\d_]+)['’]?$", before)
        return before.endswith(("'", "(")) or (bool(last) and fold(last.group(1)) in _ASKS)  # type: ignore[union-attr]

    def _ending(self, end: int, style: str, at_line: bool) -> tuple[int, bool, bool, bool]:
        """(end with colon and decoration, colon?, dash?, alone on its line?)."""
        text = self.text
        for tail in self._tails(end, at_line):
            if match := _COLON.match(text, tail):
                return match.end(), True, False, False
        close = _CLOSE.match(text, end).end()  # type: ignore[union-attr]
        if match := _LINE_END.match(text, close):
            after = _RULE.match(text, match.end())
            return (after or match).end(), False, False, True
        if (parenthesis := _PARENTHESIS.match(text, end)) and (match := _LINE_END.match(text, parenthesis.end())):
            return match.end(), False, False, True
        if match := _DASH.match(text, close):
            return match.end(), False, True, False
        return close, False, False, False

    def _tails(self, end: int, at_line: bool) -> Iterator[int]:
        """Where a colon may stand: after the name, a parenthesis, or up to four more capitalised words."""
        yield end
        if match := _PARENTHESIS.match(self.text, end):
            yield match.end()
        if not at_line or ("\n" not in self.text[max(0, self.last_end - 1) : end] and self.last_end):
            return
        for _ in range(4):
            match = _EXTRA.match(self.text, end)
            word = match.group().strip(" \t-–/&,") if match else ""
            if not match or fold(word) in _BY_FIRST or not (word[:1].isupper() or word in ("und", "and", "et", "y")):
                return
            end = match.end()
            yield end

    def _begins_sentence(self, name: str, style: str, language: str, end: int, opens: bool, at_line: bool) -> bool:
        """Whether what follows a heading without a colon is a text of its own: "FINDINGS The lungs are clear"."""
        rest = self.text[end : end + 80].lstrip(" \t")
        if rest == self.text[end : end + 80] or not rest or self.whispers or style == "lower":
            return False
        if re.match(r"\(?\d{1,2}[.)]\s+[A-Z]", rest):
            return opens or at_line
        word = _WORD.match(rest)
        follows = word.group() if word else ""
        sentence = follows[:1].isupper() and (follows[1:].islower() or follows in ("A", "I"))
        if style == "caps":
            if fold(follows) in _GOES_ON and not sentence:
                return False
            if opens or at_line:
                return at_line or not follows.isupper() or len(follows) <= 4
            return (not follows.isupper() or follows == "XXXX") and not self._asked_for(end - len(name))
        if language == "de" and name.startswith("vor"):
            return at_line and opens and follows in ("vom", "von", "keine", "nicht", "aus")
        if not opens or self.shouts or language == "de" or _ACRONYM.match(rest):
            return False
        if name in ("comparison", "comparisons", "comparaison", "comparacion"):
            return follows in ("None", "No", "Not", "Aucun", "Aucune", "Ninguno", "Ninguna", "Sin")
        return sentence


def _joined(text: str, at: int) -> bool:
    """Whether the word at `at` is the end of a longer one; after the hyphen of a modality ("ct-befund") it is not."""
    before = text[max(0, at - 1) : at]
    if before == "-":
        return re.search(r"(?:ct|mr|mrt|pet|us|rontgen)-$", text[max(0, at - 8) : at]) is None
    return before.isalnum() or (before in ("'", "/") and not text[max(0, at - 2) : at - 1].isspace())
