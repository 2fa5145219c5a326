"""From a study's texts to text units, and from the units of a batch to one packed list of distinct texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from data_shards.captions import CaptionTemplates
from data_shards.errors import DataError
from data_shards.report import anatomical_sections, sentences, split_sections
from data_shards.schema import UNIT_KINDS

NEGATIONS = frozenset({
    "no", "not", "non", "none", "never", "neither", "nor", "without", "absent", "absence", "free", "clear", "negative",
    "normal", "unremarkable", "resolved", "unlikely", "kein", "keine", "keinen", "keiner", "nicht", "ohne",
    "unauffällig", "frei", "aucun", "aucune", "pas", "sans", "normale", "sin", "ningún", "ninguna",
})  # fmt: skip
Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class UnitPolicy:
    """Which texts of a study are given to the text tower.

    report: the whole report (or findings and impression joined) as one unit; with `report_text` "findings" the findings
    alone, where there are any. alternate: every other batch has one anatomical section of the findings in place of all
    the others (data_shards.alternation), as a unit of kind section. sections: findings and impression, a unit
    each. captions: one stored caption per visit, drawn by weight. templates: a caption per visit made of the study's
    labels, beside a stored one where both are asked for. sentences: every distinct sentence of findings, impression and
    the visit's captions, at most `max_sentences` drawn per visit. shuffle_sentences: in the report unit, the sentences
    of FINDINGS in a new order per visit (its identity stays that of the original). drop_words: chance of each word to
    be left out of a visit's text, of every kind (its identity stays that of the whole): a tower that must do without
    any one word has to learn what each of them says (word dropout, arXiv 1511.06349 §3.1; 1901.11196 §2). Words that
    turn a statement into its opposite (NEGATIONS) always stay. variants: a study's texts take only so many forms, one
    an epoch in turn (None: another at every visit), so that their embeddings can be kept.
    """

    report: bool = True
    report_text: Literal["report", "findings"] = "report"
    alternate: Literal["anatomy"] | None = None
    sentences: bool = False
    sections: bool = False
    captions: bool = False
    shuffle_sentences: bool = False
    max_sentences: int = 64
    drop_words: float = 0.0
    variants: int | None = None
    templates: CaptionTemplates | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not (self.report or self.sentences or self.sections or self.captions or self.templates):
            raise DataError("no kind of text unit is switched on", "there would be nothing to compare images with")
        if self.max_sentences < 1:
            raise DataError(f"max_sentences is {self.max_sentences}", fix="use 1 or more")
        if not 0 <= self.drop_words < 1:
            raise DataError(f"drop_words is {self.drop_words}", fix="use a chance of at least 0 and below 1")


class Unit(NamedTuple):
    """kind: index into UNIT_KINDS. text: what is tokenised. identity: int64 hash of the unshuffled text."""

    kind: int
    text: str
    identity: int


def hash64(text: str) -> int:
    """BLAKE2b of a string as a signed 64-bit integer."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def tokens_identity(ids: Sequence[int]) -> int:
    """BLAKE2b of token ids as a signed 64-bit integer."""
    digest = hashlib.blake2b(np.asarray(ids, "<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def text_identity(text: str) -> int:
    """Equal for texts that differ only in case and white space."""
    return hash64(" ".join(text.split()).casefold())


def captions_identity(texts: dict[str, Any]) -> int:
    """Equal for studies (contract 1's "texts") that have the same captions stored, in any order; 0 for none. Where
    captions were written for a class, as UniMed-CLIP's, it tells the class. The study's own report, which UniMed-CLIP
    stores among those of its class (MIMIC-CXR), is left aside where there are others."""
    every = {text_identity(c["text"]) for c in texts.get("captions") or () if c["text"].strip()}
    of_class = every - {text_identity(texts.get("report") or "")} or every
    return hash64(" ".join(map(str, sorted(of_class)))) if of_class else 0


def study_units(
    texts: dict[str, Any], policy: UnitPolicy, rng: np.random.Generator | None, made: str | None = None
) -> list[Unit]:
    """The units of one study (contract 1's "texts"), distinct, in a fixed order. `rng` None: no shuffling, first
    sentences, heaviest caption (for evaluation). `made`: a caption made of its labels (data_shards.captions)."""
    report, findings, impression = _parts(texts)
    units: list[Unit] = []
    if policy.report:
        whole = findings if policy.report_text == "findings" and findings.strip() else report
        units += _report(whole, findings, impression, rng if policy.shuffle_sentences else None)
    if policy.sections:
        units += [_unit("section", text) for text in (findings, impression) if text.strip()]
    captions = [made] if made else []
    if policy.captions and (stored := [c for c in texts.get("captions") or () if c["text"].strip()]):
        weights = np.array([c["weight"] for c in stored], np.float64)
        at = int(weights.argmax()) if rng is None else int(rng.choice(len(stored), p=weights / weights.sum()))
        captions.insert(0, stored[at]["text"])
    if policy.sentences:
        every = sentences(findings) + sentences(impression) if findings or impression else sentences(report)
        every += [sentence for caption in captions for sentence in sentences(caption)]
        first: dict[int, str] = {}
        for text in every:
            first.setdefault(text_identity(text), text)
        distinct = list(first.values())
        if len(distinct) > policy.max_sentences:
            n = policy.max_sentences
            keep = range(n) if rng is None else sorted(rng.choice(len(distinct), n, replace=False))
            distinct = [distinct[i] for i in keep]
        units += [_unit("sentence", text) for text in distinct]
    units += [_unit("caption", text) for text in captions]
    return _thinned(list({(u.kind, u.identity): u for u in units}.values()), policy, rng)


def section_units(
    texts: dict[str, Any], section: str, policy: UnitPolicy, rng: np.random.Generator | None
) -> list[Unit]:
    """What a study's findings say of an anatomical section (data_shards.report.ANATOMY), one unit of kind section; none
    where they say nothing of it."""
    text = anatomical_sections(findings_of(texts))[section]
    return _thinned([_unit("section", text)] if text else [], policy, rng)


def findings_of(texts: dict[str, Any]) -> str:
    """The findings of contract 1's "texts", out of the report where they are not stored by themselves."""
    return _parts(texts)[1]


def _parts(texts: dict[str, Any]) -> tuple[str, str, str]:
    """Report, findings, impression."""
    report, findings, impression = (texts.get(k) or "" for k in ("report", "findings", "impression"))
    if report.strip() and not (findings.strip() or impression.strip()):
        sections = split_sections(report)
        findings, impression = sections["findings"], sections["impression"]
    return report, findings, impression


def _thinned(units: list[Unit], policy: UnitPolicy, rng: np.random.Generator | None) -> list[Unit]:
    if rng is None or not policy.drop_words:
        return units
    return [u._replace(text=_without_some_words(u.text, policy.drop_words, rng)) for u in units]


def is_negation(word: str) -> bool:
    """Whether a statement without this word could say the opposite."""
    return "".join(c for c in word if c.isalpha()).casefold() in NEGATIONS


def _without_some_words(text: str, share: float, rng: np.random.Generator) -> str:
    words = text.split()
    if not words:
        return text
    kept = rng.random(len(words)) >= share
    kept |= [is_negation(word) for word in words]
    kept[rng.integers(len(words))] |= not kept.any()  # a text is never left empty
    return " ".join(w for w, keep in zip(words, kept, strict=True) if keep)


def _report(report: str, findings: str, impression: str, rng: np.random.Generator | None) -> list[Unit]:
    whole = report
    if not whole.strip():
        named = (("FINDINGS", findings), ("IMPRESSION", impression))
        whole = "\n".join(f"{name}: {text.strip()}" for name, text in named if text.strip())
    if not whole.strip():
        return []
    text = whole
    if rng is not None and findings.strip():
        pieces = sentences(findings)
        shuffled = " ".join(pieces[i] for i in rng.permutation(len(pieces)))
        if findings.strip() in whole:
            text = whole.replace(findings.strip(), shuffled, 1)
    return [Unit(UNIT_KINDS.index("report"), text, text_identity(whole))]


def _unit(kind: str, text: str) -> Unit:
    return Unit(UNIT_KINDS.index(kind), text, text_identity(text))


class Packed(NamedTuple):
    """Distinct units of a batch in order of first appearance, one after another, and which samples each belongs to.
    `visits`: what identifies the tokens of this visit, where `hashes` identify the whole unshuffled text."""

    tokens: list[int]
    lengths: list[int]
    kinds: list[int]
    hashes: list[int]
    visits: list[int]
    pair_sample: list[int]
    pair_unit: list[int]


def pack(units_of_samples: Sequence[Sequence[Unit]], tokenize: Tokenize) -> Packed:
    """Merge equal units (same kind and identity) of a batch and tokenise each once. Raises DataError for a unit
    without tokens."""
    packed, number = Packed([], [], [], [], [], [], []), {}
    for sample, units in enumerate(units_of_samples):
        for unit in units:
            same = (unit.kind, unit.identity)
            if same not in number:
                ids = tokenize(unit.text)
                if not ids:
                    raise DataError("a text unit has no tokens", "attention over nothing is NaN", "check the tokenizer")
                number[same] = len(packed.lengths)
                packed.tokens.extend(ids)
                packed.lengths.append(len(ids))
                packed.kinds.append(unit.kind)
                packed.hashes.append(unit.identity)
                packed.visits.append(tokens_identity(ids))
            packed.pair_sample.append(sample)
            packed.pair_unit.append(number[same])
    return packed
