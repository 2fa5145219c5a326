"""The parts of the page, each a heading with what belongs under it, as HTML; an empty part is no part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from eval_zero_shot.outcome import Outcome
from eval_zero_shot.report.maps import SAYS
from eval_zero_shot.report.sweeps import ends_table
from eval_zero_shot.report.tables import differences, esc, finding_table, metric_table, overview, provenance
from eval_zero_shot.report.wording import audit_verdict, verdict

# Severity, the worst first: what its checks are called together, and its class in page.css.
CHECKS = {"FAIL": ("Failed", "fail"), "WARN": ("To look at", "warning"), "NOT CHECKED": ("Not checked", "not"),
          "OK": ("Passed", "ok")}  # fmt: skip
SELECT = '<label>{label} <select id="{id}"></select></label>'
Plot = Callable[[str, Sequence[Outcome]], str | None]


def by_task(outcomes: Iterable[Outcome], *protocols: str) -> dict[tuple[str, str], list[Outcome]]:
    """(protocol, task) -> its outcomes, one a model, of some protocols."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for o in outcomes:
        if o.protocol in protocols:
            found.setdefault((o.protocol, o.task), []).append(o)
    return found


def section(name: str, title: str, *content: str) -> tuple[str, str, str]:
    """(id, title, HTML); without content, nothing is shown."""
    body = "".join(content)
    return name, title, f'<h2 id="{name}">{esc(title)}</h2>{body}' if body else ""


def soft(text: str) -> str:
    """A remark."""
    return f'<p class="soft">{esc(text)}</p>'


def drawing(svg: str, name: str) -> str:
    """A plot in a box of its own."""
    return f'<figure class="scroll" aria-label="{esc(name)}">{svg}</figure>'


def audit(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """The verdict in words, a line a model; folded under it the checks by severity, and every measured value.

    What failed is unfolded where there is one audit: of several, it would push the numbers off the screen.
    """
    heads, lines = audit_verdict(outcomes)
    audits = [o for o in outcomes if o.protocol == "audit"]
    top = _severities(heads, "b")
    checks = ""
    for severity, (title, _) in CHECKS.items():
        own = [line for line in lines if line[0] == severity]
        open_ = " open" if len(audits) < 2 and (severity == "FAIL" or not audits) else ""
        if own:
            checks += f"<details{open_}><summary>{title} ({len(own)})</summary>{_severities(own)}</details>"
    tables = "".join(
        metric_table(of, f"audit-{i}", task)
        for i, ((_, task), of) in enumerate(by_task(outcomes, "audit").items())
        if any(o.metrics for o in of)
    )
    more = f"<details><summary>What the audit measured</summary>{tables}</details>" if tables else ""
    worst = CHECKS[min((severity for severity, _ in heads), key=list(CHECKS).index)][1]
    return section("audit", "Audit", f'<section class="verdict audit {worst}">{top}{checks}{more}</section>')


def _severities(lines: Sequence[tuple[str, str]], emphasis: str = "span") -> str:
    """Sentences, each with its severity before it."""
    items = "".join(
        f'<li><span class="severity {CHECKS[severity][1]}">{severity}</span> '
        f"<{emphasis}>{esc(sentence)}</{emphasis}></li>"
        for severity, sentence in lines
    )
    return f"<ul>{items}</ul>"


def found(outcomes: Sequence[Outcome], comparisons: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """What was found, in sentences, and what the protocols want known."""
    lines = "".join(f"<p>{esc(line)}</p>" for line in verdict(outcomes, comparisons))
    notes: dict[str, list[str]] = {}
    for o in outcomes:
        if o.protocol != "audit":
            for note in o.notes:
                notes.setdefault(note, []).append(f"{o.model}, {o.task}, {o.protocol}")
    items = "".join(
        f'<li>{esc(note)} <span class="soft">({esc(_whose(whose))})</span></li>' for note, whose in notes.items()
    )
    more = (
        f"<details><summary>Notes of the protocols ({len(notes)})</summary><ul>{items}</ul></details>" if notes else ""
    )
    return section("found", "What was found", f'<div class="verdict" id="verdict">{lines}</div>', more)


def models(
    outcomes: Sequence[Outcome], comparisons: Sequence[Mapping[str, Any]], groups: Mapping[str, str]
) -> tuple[str, str, str]:
    """The table of models x tasks."""
    reference = str(comparisons[0]["reference"]) if comparisons else ""
    single = len({o.model for o in outcomes}) == 1
    note = "Under each value its interval." if single else "Bold: the highest value of a task; under it its interval."
    if comparisons:
        note += (
            f" Marks: against {reference} on the same patients; win and loss where the interval of the difference "
            "excludes 0, tie where it does not (no evidence that two models are equal). Corrected p values are below."
        )
    more = ""
    if comparisons:
        more = f"<details><summary>Every difference</summary>{differences(comparisons)}</details>"
    return section("models", "Models and tasks", overview(outcomes, comparisons, groups, reference), soft(note), more)


def curves(tasks: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    """ROC and reliability, drawn by curves.js."""
    if not tasks:
        return section("curves-part", "ROC and calibration")
    selects = "".join(SELECT.format(label=label, id=f"curve-{label}") for label in ("task", "finding", "model"))
    plots = (
        '<figure><svg id="roc" class="plot" role="img"></svg><ul class="legend" id="curve-legend"></ul></figure>'
        '<figure><svg id="reliability" class="plot" role="img"></svg>'
        '<p class="soft" id="reliability-note"></p></figure>'
    )
    body = f'<div id="curves"><div class="controls">{selects}</div><div class="pair">{plots}</div></div>'
    note = "Left: every model, the chosen one thick; AUROC with its 95 % interval below. Right: the chosen model."
    return section(
        "curves-part", "ROC and calibration", body, soft(note), "<noscript>Curves need JavaScript.</noscript>"
    )


def per_finding(outcomes: Sequence[Outcome], plot: Plot) -> tuple[str, str, str]:
    """Each classification task: the forest of its findings, and a table a model."""
    tasks = by_task(outcomes, "classification")
    body: list[str] = []
    for i, ((_, task), of) in enumerate(tasks.items()):
        here = [o for o in of if any(m.of for m in o.metrics)]
        if not here:
            continue
        svg = plot(task, here)
        inner = drawing(svg, f"AUROC of {task}") if svg else "<p>No finding can be scored.</p>"
        for j, o in enumerate(here):
            name = "findings" if (i, j) == (0, 0) else f"findings-{i}-{j}"
            rows = finding_table(o, name)
            inner += f"<details><summary>{esc(o.model)}</summary>{rows}</details>" if len(here) > 1 else rows
        whole = metric_table(here, f"metrics-{i}")
        inner += f"<details><summary>Every number</summary>{whole}</details>"
        first = " open" if not body else ""
        titled = f"{task}: {', '.join(o.model for o in here)}"
        body.append(inner if len(tasks) == 1 else f"<details{first}><summary>{esc(titled)}</summary>{inner}</details>")
    note = (
        "Score: cosine with the positive prompts minus cosine with the negative ones; of classes, the log odds of the "
        "softmax over their cosines. Intervals: clustered DeLong on "
        "the logit scale, by patient; macro means by bootstrap over patients. Threshold metrics say in their heading "
        "where their threshold comes from; without one they take the sign of the score. Unknown labels are left out."
    )
    return section("per-finding", "Findings", *body, soft(note) if body else "")


def by_metrics(
    name: str, title: str, note: str, outcomes: Sequence[Outcome], plot: Plot, beside: Sequence[str] = ()
) -> tuple[str, str, str]:
    """A protocol as a plot and a table of its metrics for every task (retrieval, probes, questions)."""
    body: list[str] = []
    protocol = {"questions": "vqa"}.get(name, name)
    for i, ((_, task), of) in enumerate(by_task(outcomes, protocol).items()):
        svg = plot(task, of)
        figure = drawing(svg, f"{title} of {task}") if svg else ""
        shown = metric_table(of, f"{name}-{i}", "", beside)
        shown = f"<details><summary>Every number</summary>{shown}</details>" if svg else shown
        body.append(f"<h3>{esc(task)}</h3>{figure}{shown}")
    return section(name, title, *body, soft(note) if body else "")


def interpolation(outcomes: Sequence[Outcome], plot: Plot) -> tuple[str, str, str]:
    """Each task: the sweep between base and tuned, both ends beside the merged model, and every number."""
    body: list[str] = []
    for i, ((_, task), of) in enumerate(by_task(outcomes, "interpolation").items()):
        svg = plot(task, of)
        figure = drawing(svg, f"weight interpolation of {task}") if svg else ""
        whole = metric_table(of, f"interpolation-{i}")
        body.append(
            f"<h3>{esc(task)}</h3>{figure}{ends_table(of, f'ends-{i}')}"
            f"<details><summary>Every number</summary>{whole}</details>"
        )
    note = (
        "Weights (1 - a) base + a tuned (WiSE-FT). The validation split chose a; the other points of the curve on the "
        "split that is shown chose nothing. Differences are paired by patient."
    )
    return section("interpolation", "Weight interpolation", *body, soft(note) if body else "")


def gallery(model: str, cases: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    """Studies with the sentences nearest to them."""
    if not cases:
        return section("matched", "What it matched")
    cards = []
    for case in cases:
        slices = "".join(
            f'<figure><img alt="{esc(name)}" src="{uri}" style="aspect-ratio:{case["aspect"]:.3f}">'
            f"<figcaption>{esc(name)}</figcaption></figure>"
            for name, uri in case["slices"]
        )
        matches = "".join(
            f'<li{" class=own" if own else ""}>{esc(text)} <span class="soft">{cosine:+.2f}</span></li>'
            for text, cosine, own in case["matches"]
        )
        cards.append(
            f'<div class="case"><div class="slices">{slices}</div><ol>{matches}</ol>'
            f'<code class="soft">{esc(case["key"])}</code></div>'
        )
    planar = any(name == "image" for case in cases for name, _ in case["slices"])
    shown = "as the model sees them" if planar else "middle slice (front above, the patient's right on the left)"
    note = (
        f"A fixed choice of scored studies, {shown}, with the sentences nearest to them under {model} among all "
        "sentences of the split. ✓: the study's own report holds it word for word."
    )
    return section("matched", "What it matched", soft(note), f'<div class="cases" id="gallery">{"".join(cards)}</div>')


def looked(cases: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    """Three planes with a map, drawn by looked.js."""
    if not cases:
        return section("looked-part", "Where it looked")
    planes = "".join(
        f'<figure class="plane {plane}"><canvas role="img" aria-label="{plane} plane"></canvas>'
        f'<input type="range" min="0" value="0" aria-label="{plane} slice">'
        f"<figcaption>{plane} <output></output></figcaption></figure>"
        for plane in ("axial", "coronal", "sagittal")
    )
    kinds = dict.fromkeys(m["name"] for case in cases for m in case["maps"])
    note = (
        "For the best and the weakest findings: the study with the finding that scored highest; positive against "
        f"negative prompts; {cases[0]['ordinary']} studies are ordinary ones. No map shows where a lesion ends."
    )
    said = "".join(f"<li>{esc(kind[0].upper() + kind[1:])}: {esc(SAYS[kind])}</li>" for kind in kinds)
    selects = "".join(
        SELECT.format(label=label, id=name)
        for label, name in (("model", "looked-model"), ("finding", "finding"), ("map", "map"), ("window", "window"))
    )
    return section(
        "looked-part", "Where it looked", soft(note), f'<ul class="soft">{said}</ul>',
        f'<div id="looked"><div class="controls">{selects}<label>overlay '
        '<input id="strength" type="range" min="0" max="100" value="60"></label></div>'
        f'<p id="prompt"></p><p id="map-kind"></p><div class="planes">{planes}</div></div>',
    )  # fmt: skip


def errors(
    listed: Sequence[tuple[str, str, list[dict[str, Any]]]], pictures: Mapping[str, str]
) -> tuple[str, str, str]:
    """The cases on the wrong side, a fold a finding: [(model, task, `cases.hardest_errors`)]."""
    body: list[str] = []
    for model, task, found in listed:
        folds: list[str] = []
        for e in found:
            sides = "".join(
                f"<h3>{title}</h3>{_wrong(e[side], other, pictures)}"
                for side, title, other in (
                    ("negatives", "Without the finding, scored highest", "of the studies with it are below"),
                    ("positives", "With the finding, scored lowest", "of the studies without it are above"),
                )
                if e[side]
            )
            open_ = " open" if not body and not folds else ""
            folds.append(f"<details{open_}><summary>{esc(e['finding'].replace('_', ' '))}</summary>{sides}</details>")
        body.append(f"<h3>{esc(model)}, {esc(task)}</h3>{''.join(folds)}" if folds else "")
    note = "A label may be wrong as well as a score: look at both. Pictures: middle slice."
    return section("errors", "Hardest errors", *body, soft(note) if any(body) else "")


def _wrong(side: Sequence[tuple[str, float, float]], other: str, pictures: Mapping[str, str]) -> str:
    items = []
    for key, score, share in side:
        image = f'<img alt="middle slice" src="{pictures[key]}">' if key in pictures else ""
        said = f"score {score:+.3f}; {100 * share:.0f} % {other}"
        items.append(f"<li>{image}<code>{esc(key)}</code>{esc(said)}</li>")
    return f'<ul class="errors">{"".join(items)}</ul>'


def compared(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """What must be equal before numbers may be compared."""
    return section("what", "What was compared", provenance(outcomes))


def _whose(names: Sequence[str]) -> str:
    return "; ".join(names) if len(names) <= 2 else f"{names[0]}; and {len(names) - 1} more"
