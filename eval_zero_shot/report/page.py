"""Outcomes, studies and plots to one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Outcome
from eval_zero_shot.report import parts
from eval_zero_shot.report.curves import finding_curves
from eval_zero_shot.report.figures import auroc_plot, recall_plot, render, shots_plot, training_plot
from eval_zero_shot.report.sweeps import sweep_plot
from eval_zero_shot.report.wording import number

if TYPE_CHECKING:
    from eval_zero_shot.report.cases import Shown

HERE = Path(__file__).parent
SCRIPTS = ("planes.js", "curves.js", "looked.js")
TRAINING = "Loss of each step and, where there was a selection split, the score that chose the checkpoint."
RETRIEVAL = (
    "Chance counts identical reports. Intervals are of which patients there are; how pools are cut: noise=partition."
)
PROBE = "Features are frozen; the same labelled cases for every model."
QUESTIONS = "Compare accuracy with chance, with always answering the most frequent option, and with blank images."
YARDSTICKS = ("chance", "chance_plain")


def write_report(
    outcomes: Sequence[Outcome],
    out: Path,
    *,
    title: str,
    comparisons: Sequence[Mapping[str, Any]] = (),
    groups: Mapping[str, str] | None = None,
    metrics: Path | None = None,
    studies: Iterable[Shown] = (),
    seed: int = 0,
) -> Path:
    """Write the page of some outcomes (models x tasks x protocols), and `plots/*.png` beside it.

    comparisons: {protocol, task, model, reference, difference, low, high, p_holm, mark (`Difference.mark`)} each,
    all against one reference model; none: no marks. groups: task -> heading it stands under in the table (else the
    outcome's provenance "group", else its protocol). metrics: a training run's metrics.csv. studies: what may be shown
    of patients, one model at a time (a generator may load and free each); without them the page holds numbers only,
    and nothing of a patient.

    Raises:
        EvalError: nothing to show, one model's task twice, one name for two models, or several reference models.
    """
    require_one_each(outcomes, comparisons)
    drawn = Plots(out.parent / "plots")
    listed: list[tuple[str, str, list[dict[str, Any]]]] = []
    cards: tuple[str, list[dict[str, Any]]] = ("", [])
    maps: list[dict[str, Any]] = []
    pictures: dict[str, str] = {}
    for shown in studies:
        from eval_zero_shot.report import cases

        outcome = _outcome_of(outcomes, shown)
        cards = cards if cards[1] else (shown.model, cases.gallery(shown, seed))
        maps += cases.looked(shown, outcome)
        found = cases.hardest_errors(outcome)
        listed.append((shown.model, shown.task.name, found))
        pictures |= cases.thumbnails(shown, found, cases.THUMBNAILS - len(pictures))
    curves = _curves(outcomes)
    sections = [
        parts.audit(outcomes),
        parts.found(outcomes, comparisons),
        parts.models(outcomes, comparisons, groups or {}),
        parts.curves(curves),
        parts.per_finding(outcomes, lambda task, of: drawn.draw("auroc", task, lambda ink: auroc_plot(of, ink))),
        parts.by_metrics("retrieval", "Retrieval", RETRIEVAL, outcomes,
                         lambda task, of: drawn.draw("retrieval", task, lambda ink: recall_plot(of, ink)), YARDSTICKS),
        parts.gallery(*cards),
        parts.by_metrics("probe", "Probes", PROBE, outcomes,
                         lambda task, of: drawn.draw("probe", task, lambda ink: shots_plot(of, ink)), YARDSTICKS),
        parts.by_metrics("questions", "Closed questions", QUESTIONS, outcomes, lambda task, of: None),
        parts.interpolation(
            outcomes, lambda task, of: drawn.draw("interpolation", task, lambda ink: sweep_plot(of, ink))
        ),
        parts.looked(maps),
        parts.errors(listed, pictures),
        parts.section("training", "Training", *_training(drawn, metrics)),
        parts.compared(outcomes),
    ]  # fmt: skip
    sections = [s for s in sections if s[2]]
    page = Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        subtitle=html.escape(_subtitle(outcomes)),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js="\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        contents="".join(f'<a href="#{name}">{html.escape(heading)}</a>' for name, heading, _ in sections),
        warning=_warning(bool(listed)),
        parts="\n".join(body for _, _, body in sections),
        data=json.dumps({"curves": curves, "looked": maps}, allow_nan=False).replace("<", "\\u003c"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    return out


class Plots:
    """Figures of a page, each also `folder/KIND.png` (`KIND-TASK.png` from the second task on)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: set[str] = set()

    def draw(self, kind: str, task: str, figure: Any) -> str | None:
        """The SVG, or None where there is nothing to draw."""
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", task)
        name = kind if kind not in self.names else f"{kind}-{plain}"
        while name in self.names:
            name += "-again"
        svg = render(figure, self.folder / f"{name}.png")
        if svg is not None:
            self.names.add(name)
        return svg


def require_one_each(outcomes: Sequence[Outcome], comparisons: Sequence[Mapping[str, Any]]) -> None:
    """Raise EvalError where a table of these outcomes would be ambiguous or empty."""
    if not outcomes:
        raise EvalError("no outcome", why="there is nothing to show", fix="score a task first")
    seen: set[tuple[str, str, str]] = set()
    weights: dict[str, str] = {}
    for o in outcomes:
        if (o.protocol, o.task, o.model) in seen:
            raise EvalError(
                f"{o.protocol} of task {o.task} is there twice for model {o.model}",
                why="one cell of the table would hold two numbers",
                fix="give each folder of results once, or rename one of the models' folders and score it again",
            )
        seen.add((o.protocol, o.task, o.model))
        if weights.setdefault(o.model, o.model_sha256) != o.model_sha256:
            raise EvalError(
                f"two models are called {o.model}",
                why="one column of the table would mix them",
                fix="rename the folder of one of them and score it again",
            )
    if len({str(c["reference"]) for c in comparisons}) > 1:
        raise EvalError("comparisons with several references", why="marks would mean two things", fix="choose one")


def _outcome_of(outcomes: Sequence[Outcome], shown: Shown) -> Outcome:
    for o in outcomes:
        if (o.protocol, o.task, o.model) == ("classification", shown.task.name, shown.model):
            return o
    raise EvalError(
        f"no classification of task {shown.task.name} by model {shown.model} among these outcomes",
        why="the page would show studies beside the numbers of something else",
        fix="show studies of what was scored, or numbers alone",
    )


def _curves(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """For curves.js: tasks, their findings, and every model's curves with its AUROC in words."""
    models = list(dict.fromkeys(o.model for o in outcomes if o.protocol != "audit"))
    tasks = []
    for (protocol, task), of in parts.by_task(outcomes, "classification", "probe").items():
        found: dict[str, dict[str, Any]] = {}
        for o in of:
            for name, curve in finding_curves(o).items():
                m = o.metric("auroc", name)
                value = "AUROC " + number(m.value) if m is not None else "AUROC not among its metrics"
                if m is not None and m.low is not None:
                    value += f" ({number(m.low)} – {number(m.high)})"
                found.setdefault(name, {})[o.model] = {**curve, "auroc": value}
        if found:
            drawn = [m for m in models if any(m in curves for curves in found.values())]
            tasks.append({
                "name": task + ("" if protocol == "classification" else f" ({protocol})"),
                "models": drawn,
                "numbers": [models.index(m) for m in drawn],
                "findings": [{"name": n.replace("_", " "), "models": curves} for n, curves in found.items()],
            })  # fmt: skip
    return tasks


def _training(drawn: Plots, metrics: Path | None) -> tuple[str, ...]:
    svg = drawn.draw("training", "", lambda ink: training_plot(metrics, ink)) if metrics else None
    return () if svg is None else (parts.drawing(svg, "training"), parts.soft(TRAINING))


def _subtitle(outcomes: Sequence[Outcome]) -> str:
    splits = sorted({str(o.provenance["split"]) for o in outcomes if o.provenance.get("split")})
    tasks = list(dict.fromkeys(o.task for o in outcomes))
    many = len({(o.protocol, o.task) for o in outcomes if o.protocol != "audit"})
    models = list(dict.fromkeys(o.model for o in outcomes))
    said = f"Model {models[0]}" if len(models) == 1 else f"{len(models)} models"
    said += f", task {tasks[0]}" if len(tasks) == 1 else f", {many} tasks"
    if splits:
        said += f", split {', '.join(splits)}"
    return said + ". Research software, not a medical device."


def _warning(patients: bool) -> str:
    if not patients:
        return ""
    return (
        '<p class="warn">This page holds images and report sentences of the studies that were scored. Where they are '
        "patients, treat it as patient data; <code>--no-cases</code> makes a page without them.</p>"
    )
