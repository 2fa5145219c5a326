"""Results, studies and plots to one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from eval_zero_shot.report.figures import auroc_plot, recall_plot, render, training_plot
from eval_zero_shot.report.wording import FEW, verdict
from eval_zero_shot.results import read_results, read_scores
from eval_zero_shot.tasks import Task

if TYPE_CHECKING:
    from encoders.loading import Loaded

HERE = Path(__file__).parent
TRAINING_PLOT_NOTE = "Loss of each step and, where there was a selection split, the score that chose the checkpoint."


def write_report(
    results_folder: Path,
    out: Path,
    *,
    title: str,
    metrics: Path | None = None,
    loaded: Loaded | None = None,
    shards: Any = None,
    rows: NDArray | None = None,
    task: Task | None = None,
    seed: int = 0,
) -> Path:
    """Write the page of an evaluation (`results.json`, `scores.csv` in `results_folder`) and `plots/*.png` beside it.

    With a release, its shards, the scored rows and the task, the page also shows studies: what the model matched and
    where it looked. Without them it holds numbers only, and nothing of a patient.

    Raises:
        EvalError: the folder holds no evaluation.
    """
    results = read_results(results_folder)
    plots = out.parent / "plots"
    scored = results["macro"] is not None
    drawn = {
        "auroc": render(lambda ink: auroc_plot(results, ink), plots / "auroc.png") if scored else None,
        "recall": render(lambda ink: recall_plot(results, ink), plots / "retrieval.png"),
        "training": render(lambda ink: training_plot(metrics, ink), plots / "training.png") if metrics else None,
    }
    gallery: list[dict[str, Any]] = []
    looked: list[dict[str, Any]] = []
    if loaded is not None and shards is not None and rows is not None and task is not None:
        from eval_zero_shot.report import cases

        gallery = cases.gallery(loaded, shards, rows, seed)
        looked = cases.looked(loaded, shards, rows, task, results, read_scores(results_folder))
    provenance = results["provenance"]
    page = Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        subtitle=html.escape(
            f"Zero-shot evaluation, task “{results['task']}”, split “{provenance.get('split', '?')}”. "
            "Research software, not a medical device."
        ),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
        verdict="".join(f"<p>{html.escape(line)}</p>" for line in verdict(results)),
        warning=_warning(bool(gallery or looked)),
        auroc_plot=drawn["auroc"] or "<p>No finding can be scored.</p>",
        rows=_rows(results),
        retrieval=_section("Retrieval", drawn["recall"], "Pools are cut 100 times; chance counts identical reports."),
        training=_section("Training", drawn["training"], TRAINING_PLOT_NOTE),
        gallery=_gallery(gallery),
        looked=_looked(looked),
        provenance=_provenance(results),
        cases=json.dumps(looked).replace("<", "\\u003c"),
    )
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    return out


def _warning(patients: bool) -> str:
    if not patients:
        return ""
    return (
        '<p class="warn">This page holds images and report sentences of the studies that were scored. Where they are '
        "patients, treat it as patient data; <code>--no-cases</code> makes a page without them.</p>"
    )


def _section(title: str, svg: str | None, note: str) -> str:
    if svg is None:
        return ""
    return f'<h2>{title}</h2><figure>{svg}</figure><p class="soft">{html.escape(note)}</p>'


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _rows(results: dict[str, Any]) -> str:
    lines = []
    for name, f in results["per_finding"].items():
        interval = f["interval"] or {}
        span = "–" if interval.get("low") is None else f"{interval['low']:.3f} – {interval['high']:.3f}"
        if f["reason"]:
            span = html.escape(f["reason"])
        elif min(f["pos_patients"], f["neg_patients"]) < FEW:
            span += " (too few cases)"
        cells = [
            html.escape(name.replace("_", " ")), _number(f["auroc"]), span, _number(f["auprc"]), _number(f.get("f1")),
            _number(f.get("balanced_accuracy")), _number(f["synonym_auroc"]), f["n_pos"], f["n_neg"], f["n_unknown"],
        ]  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    interval = results["macro_interval"] or {}
    span = "–" if interval.get("low") is None else f"{interval['low']:.3f} – {interval['high']:.3f}"
    total = ["<b>macro</b>", f"<b>{_number(results['macro'])}</b>", span, _number(results["macro_auprc"]), "", ""]
    total += [_number(results["synonym_macro"]), "", "", ""]
    return "".join(lines) + "<tr>" + "".join(f"<td>{cell}</td>" for cell in total) + "</tr>"


def _gallery(cases: list[dict[str, Any]]) -> str:
    if not cases:
        return ""
    cards = []
    for case in cases:
        slices = "".join(
            f'<figure><img alt="{html.escape(name)}" src="{uri}" style="aspect-ratio:{case["aspect"]:.3f}">'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, uri in case["slices"]
        )
        matches = "".join(
            f'<li{" class=own" if own else ""}>{html.escape(text)} <span class="soft">{cosine:+.2f}</span></li>'
            for text, cosine, own in case["matches"]
        )
        key = html.escape(case["key"])
        cards.append(
            f'<div class="case"><div class="slices">{slices}</div><ol>{matches}</ol>'
            f'<code class="soft">{key}</code></div>'
        )
    planar = any(name == "image" for case in cases for name, _ in case["slices"])
    shown = "as the model sees them" if planar else "middle slice (front above, the patient's right on the left)"
    note = (
        f"A fixed choice of scored studies, {shown}, with the "
        "sentences nearest to them among all sentences of the split. ✓: the study's own report holds it word for word."
    )
    return f'<h2>What it matched</h2><p class="soft">{note}</p><div class="cases" id="gallery">{"".join(cards)}</div>'


def _looked(cases: list[dict[str, Any]]) -> str:
    if not cases:
        return ""
    planes = "".join(
        f'<figure class="plane {plane}"><canvas aria-label="{plane} plane"></canvas>'
        f'<input type="range" min="0" value="0" aria-label="{plane} slice">'
        f"<figcaption>{plane} <output></output></figcaption></figure>"
        for plane in ("axial", "coronal", "sagittal")
    )
    reference = cases[0]["ordinary"]
    note = (
        "For the best and the weakest findings: the study with the finding that scored highest. Orange adds to the "
        "score (positive against negative prompts), blue takes from it. Plain tokens of the image tower, gradient "
        f"times what sets the token apart from the same place in {reference} studies; no head was trained for this, so "
        "it shows what the score rests on, not where a lesion ends."
    )
    return (
        f'<h2>Where it looked</h2><p class="soft">{note}</p><div id="looked"><div class="controls">'
        '<label>finding <select id="finding"></select></label> <label>window <select id="window"></select></label> '
        '<label>overlay <input id="strength" type="range" min="0" max="100" value="60"></label></div>'
        f'<p id="prompt"></p><div class="planes">{planes}</div></div>'
    )


def _provenance(results: dict[str, Any]) -> str:
    simple = {k: v for k, v in results["provenance"].items() if isinstance(v, str | int | float) and v != ""}
    return "".join(
        f"<tr><td>{html.escape(k.replace('_', ' '))}</td><td><code>{html.escape(str(v))}</code></td></tr>"
        for k, v in sorted(simple.items())
    )
