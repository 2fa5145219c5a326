"""Labels and lesion sizes -> a report. Some findings stay unmentioned: their label is then unknown, not absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .parameters import FINDINGS, Parameters
from .phrases import CLOSING, DISTRACTORS, GRADE_STEPS, GRADES, HABIT, NOTHING, ORGANS, PHRASES, Phrases

UNMENTIONED = 0.2
STANDARD = 0.7  # share of healthy patients whose report is the one standard normal report
MISSED_IN_IMPRESSION = 0.15


@dataclass(frozen=True)
class Wording:
    findings: str
    impression: str
    labels: dict[str, int | None]

    @property
    def report(self) -> str:
        return f"FINDINGS:\n{self.findings}\n\nIMPRESSION:\n{self.impression}"


def kind_and_side(finding: str) -> tuple[str, str]:
    """'renal_stone_left' -> ('renal_stone', 'left'); a finding without a side gives ''."""
    kind, _, side = finding.rpartition("_")
    return (kind, side) if side in ("left", "right") else (finding, "")


def phrases_of(finding: str) -> Phrases:
    return PHRASES[kind_and_side(finding)[0]]


def fill(template: str, side: str, size: int, grade: str) -> str:
    return template.format(side=side, Side=side.capitalize(), size=size, grade=grade, Grade=grade.capitalize())


def _details(finding: str, sizes: list[float], sides: list[str], pick: float) -> tuple[str, int, str]:
    kind, side = kind_and_side(finding)
    if kind == "hydronephrosis" and sides:
        side = sides[0] if len(sides) == 1 else sides[int(pick * 2)]
    largest = max(sizes, default=0.0)
    if kind == "splenomegaly":
        largest = 5 * round(largest / 5)
    grade = ""
    if kind in GRADES:
        grade = GRADES[kind][sum(largest >= step for step in GRADE_STEPS[kind])]
    return side, round(largest), grade


def standard_report() -> Wording:
    """The normal report that part of the healthy share has word for word."""
    lines = []
    for organ in ORGANS:
        names = [f for f in FINDINGS if phrases_of(f).organ == organ]
        lines.append(" ".join(fill(phrases_of(f).negative[0], kind_and_side(f)[1], 0, "") for f in names))
    return Wording("\n".join(lines), NOTHING[0], dict.fromkeys(FINDINGS, 0))


def write_report(p: Parameters, sizes: dict[str, list[float]], sides: list[str]) -> Wording:
    """Sections by organ, one line each; sentences shuffled inside a line; distractors independent of the image."""
    rng = p.rng("words")
    if p.healthy and rng.random() < STANDARD:
        return standard_report()

    def choose(options: tuple[str, ...]) -> str:
        draw, total = float(rng.random()), sum(HABIT[: len(options)])
        for option, weight in zip(options, HABIT):
            draw -= weight / total
            if draw < 0:
                return option
        return options[-1]

    lines: dict[str, list[tuple[float, str]]] = {organ: [] for organ in ORGANS}
    summary: list[tuple[float, str]] = []
    labels: dict[str, int | None] = {}
    for finding in FINDINGS:
        table, present = phrases_of(finding), p.truth[finding]
        side, size, grade = _details(finding, sizes.get(finding, []), sides, float(rng.random()))
        mentioned = rng.random() >= UNMENTIONED
        labels[finding] = present if mentioned else None
        options = table.positive if present else table.negative
        if present and len(sizes.get(finding, [])) > 1 and table.several:
            options = (options[0], *table.several, *options[1:4])
        sentence, short = (fill(choose(o), side, size, grade) for o in (options, table.impression))
        order, listed = float(rng.random()), rng.random() >= MISSED_IN_IMPRESSION
        if mentioned:
            lines[table.organ].append((order, sentence))
            if present and listed:
                summary.append((order, short))
    for organ in ORGANS:
        aside = choose(DISTRACTORS[organ])
        order, wanted = float(rng.random()), rng.random() < 0.22
        if wanted:
            lines[organ].append((order, aside))
    closing, wanted = choose(CLOSING), rng.random() < 0.25
    impression = [text for _, text in sorted(summary)] or [choose(NOTHING)]
    if wanted:
        impression.append(closing)
    findings = "\n".join(" ".join(text for _, text in sorted(lines[organ])) for organ in ORGANS if lines[organ])
    return Wording(findings, " ".join(impression), labels)


def every_sentence() -> Iterator[str]:
    """All sentences a training report can contain (a few thousand)."""
    for finding in FINDINGS:
        kind, side = kind_and_side(finding)
        table = PHRASES[kind]
        span = range(60, 186, 5) if kind == "splenomegaly" else range(0, 61)
        for template in (*table.positive, *table.negative, *table.impression, *table.several):
            for s in (side,) if side else ("left", "right"):
                for size in span if "{size}" in template else (0,):
                    for grade in GRADES.get(kind, ("",)):
                        yield fill(template, s, size, grade)
    for group in (*DISTRACTORS.values(), NOTHING, CLOSING):
        yield from group
