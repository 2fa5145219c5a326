"""What an evaluation found, in sentences: the audit's verdict, then what the numbers say and what to doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval_zero_shot.interpolation_outcomes import ends
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.report.curves import Counts, counts, findings

FEW = 15  # patients on a side under which an interval is called weak
SEVERITIES = ("FAIL", "WARN", "NOT CHECKED", "OK")
SHORT = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "ece": "calibration error", "map": "mAP", "knn": "kNN"}


def words(name: str) -> str:
    """A metric's or finding's name as a reader has it: macro_auroc -> macro AUROC."""
    return " ".join(SHORT.get(part, part) for part in name.replace("$", "").split("_"))


def headline_words(outcome: Outcome) -> str:
    """The headline's name; a mean over several findings is called macro."""
    mean = outcome.headline in ("auroc", "auprc") and len(outcome.classes) != 1
    return f"macro {words(outcome.headline)}" if mean else words(outcome.headline)


def number(value: float | None, digits: int = 3) -> str:
    """A value to three digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def span(metric: Metric | None) -> str:
    """The interval of a metric, or a dash."""
    if metric is None or metric.low is None or metric.high is None:
        return "–"
    return f"{metric.low:.3f} – {metric.high:.3f}"


Said = tuple[str, str]  # severity, sentence


def audit_verdict(outcomes: Sequence[Outcome]) -> tuple[list[Said], list[Said]]:
    """(the verdict, a line a model; every check, the worst first) of the audits among the outcomes.

    A note begins with its severity ("FAIL same patient: ..."); one that does not is the headline of its audit, and a
    model's line has those of all its tasks, and its worst severity. Models and tasks are named where audits of several
    say different things; models that no audit is of have a line too.
    """
    audits = [o for o in outcomes if o.protocol == "audit"]
    if not audits:
        return (
            [("NOT CHECKED", "No audit was run: nothing here says that test studies or their prompts were kept out of "
              "training.")],
            [("NOT CHECKED", "Leaks, shortcuts and what text alone would score: python -m eval_zero_shot.audit")],
        )  # fmt: skip
    several = len({o.model for o in audits}) > 1 or len({o.task for o in audits}) > 1
    heads: dict[str, dict[str, list[str]]] = {}  # model -> headline -> tasks
    worst: dict[str, list[str]] = {}
    lines: dict[Said, list[str]] = {}
    for audit in audits:
        whose = f"{audit.model}, {audit.task}"
        told = [_severity(note) for note in audit.notes]
        checks = [(severity, sentence) for severity, sentence in told if severity is not None]
        said = [sentence for severity, sentence in told if severity is None]
        said = said or [_headline_of([severity for severity, _ in checks])]
        heads.setdefault(audit.model, {}).setdefault(said[0], []).append(audit.task)
        worst.setdefault(audit.model, []).extend(severity for severity, _ in checks)
        lines.update({("WARN", more): [whose] for more in said[1:]})
        for check in checks:
            lines.setdefault(check, []).append(whose)
    verdicts = [
        (_worst(worst[model]), " ".join(f"{model}, {', '.join(of)}: {said}" if several else said
                                        for said, of in found.items()))
        for model, found in heads.items()
    ]  # fmt: skip
    unaudited = dict.fromkeys(o.model for o in outcomes if o.model not in heads)
    if unaudited:
        verdicts.append(("NOT CHECKED", f"No audit was run of {', '.join(unaudited)}."))
    named = [
        (severity, f"{'; '.join(whose)}: {sentence}" if several and len(whose) < len(audits) else sentence)
        for (severity, sentence), whose in lines.items()
    ]
    return verdicts, sorted(named, key=lambda line: SEVERITIES.index(line[0]))


def _worst(severities: Sequence[str]) -> str:
    return min(severities, key=SEVERITIES.index, default="NOT CHECKED")


def _headline_of(severities: Sequence[str]) -> str:
    """Of an audit that brought none."""
    count = {s: severities.count(s) for s in SEVERITIES}
    if count["FAIL"]:
        return f"Do not report these scores as they are: {_plural(count['FAIL'], 'check')} failed."
    if count["WARN"]:
        return f"No check failed, but {_plural(count['WARN'], 'warning')} should be looked at."
    return "Nothing was found against these scores." if count["OK"] else "Nothing could be checked."


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
    said = [f"{len(models)} models on {_plural(len(tasks), 'task')}; the largest is {most.task} with {most.counted}."]
    for protocol, task in tasks[:12]:
        here = [o for o in scored if (o.protocol, o.task) == (protocol, task)]
        if protocol == "interpolation":
            said += [f"{task}, {o.model}: {line[0].lower()}{line[1:]}" for o in here for line in _interpolation(o)]
            continue
        ranked = sorted((o for o in here if o.main.value is not None), key=lambda o: -(o.main.value or 0.0))
        if not ranked:
            said.append(f"{task}: no model has a value.")
            continue
        first, rest = ranked[0], ranked[1:]
        others = ", ".join(f"{o.model} {number(o.main.value)}" for o in rest)
        said.append(
            f"{task} ({protocol}): {first.model} is first with {headline_words(first)} "
            f"{number(first.main.value)}{_within(first.main)}" + (f"; {others}." if others else ".")
        )
    return said + _marks(comparisons)


def _one_model(scored: Sequence[Outcome]) -> list[str]:
    most = max(scored, key=lambda o: o.studies)
    said = [f"Scored on {most.counted}."]
    several = len(scored) > 1
    for outcome in scored:
        told = {"classification": _classification, "retrieval": _retrieval, "interpolation": _interpolation}
        lines = told.get(outcome.protocol, _headline)(outcome)
        if several and lines and outcome.protocol != "retrieval":
            lines[0] = f"{outcome.task}: {lines[0][0].lower()}{lines[0][1:]}"
        said += lines
    return said


def _headline(outcome: Outcome) -> list[str]:
    main, name = outcome.main, headline_words(outcome)
    if main.value is None:
        return [f"No {name}: {main.reason or 'no value'}."]
    return [f"{name[0].upper()}{name[1:]} ({outcome.protocol}) {number(main.value)}{_within(main)}."]


def _classification(outcome: Outcome) -> list[str]:
    found = {m.of: m for m in outcome.metrics if m.name == "auroc" and m.of and not m.at and m.value is not None}
    main = outcome.main
    if main.value is None:
        return ["No finding has both positive and negative studies, so nothing can be said of it."]
    sides = {name: counts(part) for name, part in findings(outcome).items()}
    few = [name for name in found if name in sides and sides[name].fewest_patients < FEW]
    if outcome.headline != "auroc" or not found:
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
    for m in outcome.metrics:
        if m.name == outcome.headline and not m.of and set(m.at) == {"prompts"} and m.value is not None:
            said.append(f"With the prompt set “{m.at['prompts']}” the {headline_words(outcome)} is {number(m.value)}.")
    other = outcome.metric(outcome.headline, scores="attended")
    by = outcome.metric(f"{outcome.headline}_difference", scores="attended")
    if other is not None and other.value is not None:
        told = "" if by is None or by.value is None else f", {by.value:+.3f} against the plain cosine{_within(by)}"
        said.append(f"By the released head “attended” the {headline_words(outcome)} is {number(other.value)}{told}.")
    return said


def _retrieval(outcome: Outcome) -> list[str]:
    said = []
    for m in outcome.metrics:
        if m.name != "recall" or m.value is None or m.at.get("k") != 1 or not one_of_recalls(m.at):
            continue
        chance = outcome.metric("chance", m.of, **m.at)
        times = f" ({_times(m.value / chance.value)} chance)" if chance is not None and chance.value else ""
        pool = "of all " if m.at.get("pool") == "full" else f"of {m.at['pool']} " if "pool" in m.at else ""
        said.append(
            f"Retrieval {words(m.of)}: the right one {pool}comes first in {100 * m.value:.0f} % of queries{times}."
        )
    return said[:4] or _headline(outcome)


def _interpolation(outcome: Outcome) -> list[str]:
    main = outcome.main
    return [
        f"Merged with {outcome.provenance['base']}, {headline_words(outcome)} {number(main.value)}{_within(main)}; "
        f"{between(outcome)}."
    ]


def between(outcome: Outcome) -> str | None:
    """Where a merged model lies between its ends, and what these score; None for an outcome of another protocol."""
    both = ends(outcome)
    if both is None:
        return None
    return f"a = {outcome.provenance['alpha']:g}; base {number(both[0].value)}, tuned {number(both[1].value)}"


def one_of_recalls(at: Mapping[str, Any]) -> bool:
    """Whether a recall is shown in short: identical texts are hits, intervals are over patients."""
    return not set(at) - {"k", "pool", "ties"} and at.get("ties") in (None, "identical_texts")


def _marks(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    comparisons = default_prompts(comparisons)
    for model in dict.fromkeys(str(c["model"]) for c in comparisons):
        own = [c for c in comparisons if c["model"] == model]
        n = {mark: sum(c["mark"] == mark for c in own) for mark in ("win", "tie", "loss", "untold")}
        untold = f"; {n['untold']} cannot be told" if n["untold"] else ""
        said.append(
            f"Against {own[0]['reference']}, {model} wins {n['win']}, ties {n['tie']} and loses {n['loss']} of "
            f"{_plural(len(own), 'task')} (paired by patient){untold}."
        )
    return said


def default_prompts(comparisons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without those for which each model's prompts were chosen on validation: one mark a cell."""
    return [c for c in comparisons if c.get("prompts") in (None, "default")]


def weak(sides: Counts | None) -> bool:
    """Whether an interval rests on too few patients on one side."""
    return sides is not None and sides.fewest_patients < FEW


def _severity(note: str) -> tuple[str | None, str]:
    for severity in SEVERITIES:
        if note.startswith(severity) and note[len(severity) : len(severity) + 1] in (":", " "):
            return severity, note[len(severity) :].removeprefix(":").strip()
    return None, note


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
