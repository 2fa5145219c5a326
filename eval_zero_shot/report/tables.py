"""Tables of the page as HTML: models x tasks with marks, findings, and every other metric by name.

Everything that comes from files (names, notes) is escaped here, once.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.report.curves import counts, findings
from eval_zero_shot.report.wording import between, default_prompts, headline_words, number, span, weak, words

MARKS = {"win": "▲ win", "tie": "= tie", "loss": "▼ loss"}  # beside them "untold": without an interval
RULES = ("validation", "sign", "prevalence", "test")  # of thresholds, the one to believe first
DECISIONS = ("f1", "balanced_accuracy", "sensitivity", "specificity")


def esc(value: object) -> str:
    """Text for HTML."""
    return html.escape(str(value))


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], name: str = "", caption: str = "", words_in: int = 1
) -> str:
    """A table that scrolls sideways in its own box; `head` and cells are HTML already, `words_in` columns hold words
    and not numbers."""
    identity = f' id="{esc(name)}"' if name else ""
    said = f"<caption>{caption}</caption>" if caption else ""
    cells = "".join(f'<th scope="col"{_left(i < words_in)}>{h}</th>' for i, h in enumerate(head))
    body = "".join(f"<tr>{_row(row, words_in)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(name or "table")}"><table{identity}>{said}'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str], words_in: int = 1) -> str:
    return f'<th scope="row">{cells[0]}</th>' + "".join(
        f"<td{_left(i < words_in)}>{c}</td>" for i, c in enumerate(cells[1:], 1)
    )


def _left(is_words: bool) -> str:
    return ' class="words"' if is_words else ""


def _badge(mark: object) -> str:
    return f'<span class="mark {esc(mark)}">{MARKS.get(str(mark), esc(mark))}</span>'


def _models(outcomes: Iterable[Outcome]) -> list[str]:
    return list(dict.fromkeys(o.model for o in outcomes))


def overview(
    outcomes: Sequence[Outcome], comparisons: Sequence[Mapping[str, Any]], groups: Mapping[str, str], reference: str
) -> str:
    """Models x tasks: headline value, interval, and the mark against the reference model, tasks under their groups."""
    scored = [o for o in outcomes if o.protocol != "audit"]
    models = _models(scored)
    comparisons = default_prompts(comparisons)
    marks = {(c["protocol"], c["task"], c["model"]): c for c in comparisons}
    grouped: dict[str, dict[tuple[str, str], dict[str, Outcome]]] = {}
    for o in scored:
        group = groups.get(o.task) or str(o.provenance.get("group") or o.protocol)
        grouped.setdefault(group, {}).setdefault((o.protocol, o.task), {})[o.model] = o
    head = ["task"] + [esc(m) + (' <span class="soft">(reference)</span>' if m == reference else "") for m in models]
    body = []
    for group, tasks in grouped.items():
        body.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}">{esc(words(group))}</th></tr>')
        for (protocol, task), of in tasks.items():
            first = next(iter(of.values()))
            values = [o.main.value for o in of.values() if o.main.value is not None]
            best = max(values) if len(values) > 1 else None
            cells = [_task(first, group)]
            for model in models:
                cells.append(_value(of.get(model), best, marks.get((protocol, task, model))))
            body.append(f'<tr><th scope="row">{cells[0]}</th>' + "".join(f"<td>{c}</td>" for c in cells[1:]) + "</tr>")
    if comparisons:
        cells = ["wins / ties / losses"]
        for model in models:
            own = [c["mark"] for c in comparisons if c["model"] == model]
            cells.append(" / ".join(str(own.count(mark)) for mark in MARKS) if own else "–")
        body.append(f'<tr class="total">{_row(cells)}</tr>')
    top = "".join(f'<th scope="col">{h}</th>' for h in head)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="models and tasks">'
        f'<table id="overview"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _task(outcome: Outcome, group: str) -> str:
    said = headline_words(outcome) + ("" if group == outcome.protocol else f", {outcome.protocol}")
    task = esc(outcome.task).replace("_", "_<wbr>")
    return f'{task}<br><span class="soft">{esc(said)}<br>{outcome.counted}</span>'


def _value(outcome: Outcome | None, best: float | None, mark: Mapping[str, Any] | None) -> str:
    if outcome is None:
        return '<span class="soft">not scored</span>'
    main = outcome.main
    if main.value is None:
        return f'– <span class="soft">{esc(main.reason or "")}</span>'
    shown = number(main.value)
    shown = f"<b>{shown}</b>" if best is not None and main.value == best else shown
    interval = f'<br><span class="soft">{span(main)}</span>' if main.low is not None else ""
    if (both := between(outcome)) is not None:
        interval += f'<br><span class="soft">{esc(both)}</span>'
    return shown + interval + ("" if mark is None else f"<br>{_badge(mark['mark'])}")


def differences(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Every comparison with its difference, interval and corrected p; where there is a choice, with which prompts."""
    choice = any(c.get("prompts") for c in comparisons)
    rows = [
        [
            *(esc(c[name]) for name in ("task", "protocol", "model", "reference")), *([_prompts(c)] if choice else []),
            _signed(c.get("difference")),
            "–" if c.get("low") is None else f"{_signed(c['low'])} – {_signed(c.get('high'))}",
            _p(c.get("p_holm")), _badge(c["mark"]),
        ]
        for c in comparisons
    ]  # fmt: skip
    head = ["task", "protocol", "model", "against", *(["prompts"] if choice else [])]
    return table([*head, "difference", "95 % interval", "p (Holm)", "mark"], rows, "differences", words_in=len(head))


def _prompts(comparison: Mapping[str, Any]) -> str:
    """Which prompt sets, and the lowest and highest value of each model over all sets."""
    said = [str(comparison.get("prompts") or "default")]
    if any(comparison.get("chosen") or ()):
        said.append(" against ".join(str(c) for c in comparison["chosen"]))
    ranges = [f"{low:.3f}–{high:.3f}" for low, high in filter(None, comparison.get("spread") or ())]
    if ranges:
        said.append(f"over all sets {' against '.join(ranges)}")
    return esc(said[0]) + "".join(f'<br><span class="soft">{esc(more)}</span>' for more in said[1:])


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _p(value: float | None) -> str:
    return "–" if value is None else "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def finding_table(outcome: Outcome, name: str = "") -> str:
    """One model on one task: findings down; AUROC with interval, what needs no threshold, decisions by one threshold
    rule (of a training-derived split where there is one), and how many cases. `metric_table` has everything."""
    by = {(m.name, m.of, _at(m)): m for m in outcome.metrics}
    names = list(dict.fromkeys((*(n for n in outcome.classes if any(m.of == n for m in outcome.metrics)),
                                *(m.of for m in outcome.metrics if m.of))))  # fmt: skip
    rules = [str(m.at["threshold"]) for m in outcome.metrics if m.of and set(m.at) == {"threshold"}]
    rule = min(rules, key=lambda r: RULES.index(r) if r in RULES else len(RULES)) if rules else None
    beside = {"prompts"}, {"scores"}
    columns = [
        (m.name, _at(m)) for m in outcome.metrics
        if m.of and m.value is not None and (m.name != "auroc" or m.at)
        and (not m.at or set(m.at) in beside or (m.at == {"threshold": rule} and m.name in DECISIONS))
    ]  # fmt: skip
    by_head = {_at(m) for m in outcome.metrics if set(m.at) == {"scores"}}
    columns = sorted(dict.fromkeys(columns), key=lambda column: column[1] not in by_head)  # beside the AUROC
    parts = findings(outcome)
    main = any(m.name == "auroc" and m.of and not m.at for m in outcome.metrics)
    head = ["finding", *(("AUROC", "95 % interval") if main else ())]
    head += [esc(f"{words(n)} ({a})" if a else words(n)) for n, a in columns]
    head += ["pos.", "neg.", "unknown"] if parts else []
    rows = []
    for of in names:
        cells = [esc(of.replace("_", " "))]
        sides = counts(parts[of]) if of in parts else None
        if main:
            cells += _auroc(by.get(("auroc", of, "")), weak(sides))
        cells += [number(other.value if (other := by.get((n, of, a))) else None) for n, a in columns]
        if parts:
            cells += ["–"] * 3 if sides is None else [str(v) for v in (sides.positive, sides.negative, sides.unknown)]
        rows.append(cells)
    macro = ["<b>macro</b>"]
    if main:
        whole = by.get(("auroc", "", ""))
        macro += [f"<b>{number(whole.value if whole else None)}</b>", span(whole)]
    macro += [number(w.value) if (w := by.get((n, "", a))) else "" for n, a in columns]
    return table(head, [*rows, [*macro, *([""] * 3 if parts else [])]], name)


def _auroc(metric: Metric | None, few: bool) -> list[str]:
    interval = span(metric)
    if metric is not None and metric.low is None and metric.reason:
        interval = f'<span class="soft">{esc(metric.reason)}</span>'
    elif metric is not None and few:
        interval += ' <span class="soft">(too few cases)</span>'
    return [number(metric.value if metric else None), interval]


def metric_table(outcomes: Sequence[Outcome], name: str, heading: str = "", beside: Sequence[str] = ()) -> str:
    """Every metric of some outcomes (one protocol, one task): metrics down, models across, intervals under values.

    beside: names of metrics that are the same question's yardstick ("chance"); they get a column of their own.
    """
    models = _models(outcomes)
    rows: dict[tuple[str, str, str], dict[str, Metric]] = {}
    yard: dict[tuple[str, str], dict[str, float]] = {}
    for o in outcomes:
        for m in o.metrics:
            if m.name in beside:
                if m.value is not None:
                    yard.setdefault((m.of, _at(m)), {})[m.name] = m.value
            else:
                rows.setdefault((m.name, m.of, _at(m)), {})[o.model] = m
    shown = [n for n in beside if any(n in values for values in yard.values())]
    whose = any(of for _, of, _ in rows)
    where = any(at for _, _, at in rows)
    head = ["metric", *(["of"] if whose else []), *(["at"] if where else []), *(esc(m) for m in models)]
    head += [esc(words(n)) for n in shown]
    body = []
    for (metric, of, at), values in sorted(rows.items(), key=lambda row: bool(row[0][1])):
        cells = [esc(words(metric)), *([esc(words(of))] if whose else []), *([esc(at)] if where else [])]
        for model in models:
            cells.append(_valued(values.get(model)))
        known = yard.get((of, at)) or {}
        cells += [number(known.get(n)) for n in shown]
        body.append(cells)
    return table(head, body, name, esc(heading), 1 + whose + where)


def _valued(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "–" if metric is None else f'– <span class="soft">{esc(metric.reason or "")}</span>'
    return number(metric.value) + (f'<br><span class="soft">{span(metric)}</span>' if metric.low is not None else "")


def _at(metric: Metric) -> str:
    return ", ".join(f"{words(k)} {_plain(v)}" for k, v in metric.at.items())


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def provenance(outcomes: Sequence[Outcome]) -> str:
    """What must be equal before outcomes may be compared; rows that differ between them are said to."""
    rows: dict[str, dict[str, list[str]]] = {}
    for o in outcomes:
        entries: dict[str, Any] = {**o.provenance, "model_sha256": o.model_sha256, "scans": o.scans}
        for key, value in entries.items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            if isinstance(value, str | int | float) and value != "":
                rows.setdefault(key, {}).setdefault(str(value), []).append(f"{o.model}, {o.task}, {o.protocol}")
    body = []
    for key, values in sorted(rows.items()):
        if len(values) == 1:
            shown = f"<code>{esc(next(iter(values)))}</code>"
        else:
            shown = "<br>".join(
                f'<code>{esc(v)}</code> <span class="soft">{esc(_whose(names))}</span>' for v, names in values.items()
            )
        body.append((esc(key.replace("_", " ")), shown))
    return table(("what", "value"), body, "provenance", words_in=2)


def _whose(names: Sequence[str]) -> str:
    return "; ".join(names) if len(names) <= 2 else f"{names[0]}; and {len(names) - 1} more"
