"""What an evaluation found, in sentences: the audit's verdict, then what the numbers say and what to doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.report.curves import Counts, counts, findings

FEW = 15  # patients on a side under which an interval is called weak
SEVERITIES = ("FAIL", "WARN", "NOT CHECKED", "OK")
SHORT = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "ece": "calibration error", "map": "mAP", "knn": "kNN"}


def words(name: str) -> str:
    """A metric's or finding's name as a reader has it: macro_auroc -> macro AUROC."""
    return " ".join(SHORT.get(part, part) for part in name.replace("$", "").split("_"))


def number(value: float | None, digits: int = 3) -> str:
    """A value to three digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def span(metric: Metric | None) -> str:
    """The interval of a metric, or a dash."""
    if metric is None or metric.low is None or metric.high is None:
        return "–"
    return f"{metric.low:.3f} – {metric.high:.3f}"


def audit_verdict(outcomes: Sequence[Outcome]) -> tuple[str, list[tuple[str, str]]]:
    """(a headline, [(severity, sentence)] with the worst first) of the audits among the outcomes.

    A sentence begins with its severity ("FAIL: ..."); one that does not counts as a warning. A model is named where
    there are several.
    """
    audits = [o for o in outcomes if o.protocol == "audit"]
    if not audits:
        return (
            "No audit was run: nothing here says that test studies or their prompts were kept out of training.",
            [("NOT CHECKED", "Leaks, shortcuts and what text alone would score: python -m eval_zero_shot.audit")],
        )
    several = len({o.model for o in audits}) > 1
    lines: dict[tuple[str, str], list[str]] = {}
    for audit in audits:
        for note in audit.notes:
            severity, sentence = _severity(note)
            lines.setdefault((severity, sentence), []).append(audit.model)
    said = []
    everyone = len({o.model for o in audits})
    unaudited = dict.fromkeys(o.model for o in outcomes if o.model not in {a.model for a in audits})
    if unaudited:
        lines["NOT CHECKED", f"no audit was run of {', '.join(unaudited)}."] = [a.model for a in audits]
    for (severity, sentence), models in lines.items():
        named = sorted(set(models))
        whose = f"{', '.join(named)}: " if several and len(named) < everyone else ""
        said.append((severity, whose + sentence))
    said.sort(key=lambda line: SEVERITIES.index(line[0]))
    count = {s: sum(severity == s for severity, _ in said) for s in SEVERITIES}
    if count["FAIL"]:
        many = "1 check failed" if count["FAIL"] == 1 else f"{count['FAIL']} checks failed"
        head = f"The audit does not stand behind these numbers: {many}."
    elif count["WARN"]:
        head = f"The audit passed with {_plural(count['WARN'], 'warning')}."
    elif count["OK"]:
        head = f"The audit found nothing wrong in {_plural(count['OK'], 'check')}."
    else:
        head = "The audit could check nothing."
    if count["NOT CHECKED"]:
        head += f" {_plural(count['NOT CHECKED'], 'thing').capitalize()} could not be checked."
    return head, said


def verdict(outcomes: Sequence[Outcome], comparisons: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """A few plain sentences on what was scored, what stands out, and what to doubt."""
    scored = [o for o in outcomes if o.protocol != "audit"]
    if not scored:
        return ["Nothing was scored."]
    models = list(dict.fromkeys(o.model for o in scored))
    if len(models) == 1:
        return _one_model(scored)
    tasks = list(dict.fromkeys((o.protocol, o.task) for o in scored))
    most = max(scored, key=lambda o: o.studies)
    said = [f"{len(models)} models on {_plural(len(tasks), 'task')}; the largest is {most.task} with {_cases(most)}."]
    for protocol, task in tasks[:12]:
        here = [o for o in scored if (o.protocol, o.task) == (protocol, task)]
        ranked = sorted((o for o in here if o.main.value is not None), key=lambda o: -(o.main.value or 0.0))
        if not ranked:
            said.append(f"{task}: no model has a value.")
            continue
        first, rest = ranked[0], ranked[1:]
        others = ", ".join(f"{o.model} {number(o.main.value)}" for o in rest)
        said.append(
            f"{task} ({protocol}): {first.model} is first with {words(first.headline)} "
            f"{number(first.main.value)}{_within(first.main)}" + (f"; {others}." if others else ".")
        )
    return said + _marks(comparisons)


def _one_model(scored: Sequence[Outcome]) -> list[str]:
    most = max(scored, key=lambda o: o.studies)
    said = [f"Scored on {_cases(most)}."]
    several = len(scored) > 1
    for outcome in scored:
        lines = {"classification": _classification, "retrieval": _retrieval}.get(outcome.protocol, _headline)(outcome)
        if several and lines and outcome.protocol != "retrieval":
            lines[0] = f"{outcome.task}: {lines[0][0].lower()}{lines[0][1:]}"
        said += lines
    return said


def _headline(outcome: Outcome) -> list[str]:
    main = outcome.main
    if main.value is None:
        return [f"No {words(outcome.headline)}: {main.reason or 'no value'}."]
    return [f"{words(outcome.headline).capitalize()} ({outcome.protocol}) {number(main.value)}{_within(main)}."]


def _classification(outcome: Outcome) -> list[str]:
    found = {m.of: m for m in outcome.metrics if m.name == "auroc" and m.of and not m.at and m.value is not None}
    main = outcome.main
    if main.value is None:
        return ["No finding has both positive and negative studies, so nothing can be said of it."]
    sides = {name: counts(part) for name, part in findings(outcome).items()}
    few = [name for name in found if name in sides and sides[name].fewest_patients < FEW]
    if outcome.headline != "macro_auroc" or not found:
        return _headline(outcome)
    graded = _grade(main.value) if len(few) < len(found) else "too few cases to say how good that is"
    said = [f"Macro AUROC over {_plural(len(found), 'finding')}: {number(main.value)}{_within(main)}: {graded}."]
    best, worst = (f(found, key=lambda n: found[n].value or 0.0) for f in (max, min))
    if best != worst:
        said.append(f"Best: {_named(best, found)}. Weakest: {_named(worst, found)}.")
    spans = {n: (m.low, m.high) for n, m in found.items() if m.low is not None and m.high is not None}
    below = [n for n, (_, high) in spans.items() if high < 0.5]
    chance = [n for n, (low, high) in spans.items() if low <= 0.5 <= high]
    if below:
        said.append(f"Below chance (are labels or prompts swapped?): {_list(below)}.")
    if chance:
        said.append(f"Not told from chance: {_list(chance)}.")
    if few:
        said.append(f"Too few cases for a firm statement (under {FEW} patients on a side): {_list(few)}.")
    synonyms = outcome.metric("macro_auroc", prompts="synonyms")
    if synonyms is not None and synonyms.value is not None:
        said.append(f"With synonyms it has not been trained on, the macro AUROC is {number(synonyms.value)}.")
    return said


def _retrieval(outcome: Outcome) -> list[str]:
    said = []
    for m in outcome.metrics:
        if m.name != "recall" or m.value is None or m.at.get("k") != 1 or set(m.at) - {"k", "pool"}:
            continue
        chance = outcome.metric("chance", m.of, **m.at)
        times = f" ({_times(m.value / chance.value)} chance)" if chance is not None and chance.value else ""
        pool = f"of {m.at['pool']} " if "pool" in m.at else ""
        said.append(
            f"Retrieval {words(m.of)}: the right one {pool}comes first in {100 * m.value:.0f} % of queries{times}."
        )
    return said[:4] or _headline(outcome)


def _marks(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    for model in dict.fromkeys(str(c["model"]) for c in comparisons):
        own = [c for c in comparisons if c["model"] == model]
        n = {mark: sum(c["mark"] == mark for c in own) for mark in ("win", "tie", "loss")}
        said.append(
            f"Against {own[0]['reference']}, {model} wins {n['win']}, ties {n['tie']} and loses {n['loss']} of "
            f"{_plural(len(own), 'task')} (paired by patient, Holm-corrected)."
        )
    return said


def weak(sides: Counts | None) -> bool:
    """Whether an interval rests on too few patients on one side."""
    return sides is not None and sides.fewest_patients < FEW


def _severity(note: str) -> tuple[str, str]:
    head, colon, rest = note.partition(":")
    return (head.strip(), rest.strip()) if colon and head.strip() in SEVERITIES else ("WARN", note)


def _cases(outcome: Outcome) -> str:
    return f"{outcome.studies:,} studies of {outcome.patients:,} patients"


def _within(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return ""
    return f" ({100 * metric.level:.0f} % interval {metric.low:.3f} to {metric.high:.3f})"


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _grade(auroc: float) -> str:
    for least, said in ((0.95, "separates almost all cases"), (0.85, "good"), (0.7, "moderate"), (0.55, "weak")):
        if auroc >= least:
            return said
    return "no better than chance"


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 9.5 else f"{ratio:.1f} times"


def _named(name: str, found: Mapping[str, Metric]) -> str:
    return f"{name.replace('_', ' ')} ({number(found[name].value, 2)})"


def _list(names: Sequence[str]) -> str:
    return ", ".join(n.replace("_", " ") for n in names)
