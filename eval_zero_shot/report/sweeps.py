"""Weight interpolations on the page: the curve between base and tuned, and both ends beside the merged model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval_zero_shot.interpolation_outcomes import BASE, TUNED, ends, points
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.report.figures import PALETTE, SHAPES, legend, plain
from eval_zero_shot.report.tables import esc, table
from eval_zero_shot.report.wording import headline_words, number


def sweep_plot(outcomes: Sequence[Outcome], ink: str) -> Any | None:
    """The headline of one task over a, one colour a model: solid on the split that is shown, with intervals at base,
    merged and tuned; dashed on validation, which chose; a line where. None without an outcome."""
    import matplotlib.pyplot as plt

    if not outcomes:
        return None
    figure, axes = plt.subplots(figsize=(7.0, 3.2))
    for i, outcome in enumerate(outcomes):
        colour, shape = PALETTE[i % len(PALETTE)], SHAPES[i % len(SHAPES)]
        for split, style in (("split", f"{shape}-"), ("validation_split", "--")):
            found = [m for m in points(outcome, str(outcome.provenance[split])) if m.value is not None]
            x = [float(m.at["alpha"]) for m in found]
            axes.plot(x, [float(m.value or 0) for m in found], style, color=colour, ms=4, lw=1.4)
            for place, m in zip(x, found, strict=True):
                if m.low is not None and m.high is not None:
                    axes.vlines(place, m.low, m.high, color=colour, lw=3, alpha=0.35)
        axes.axvline(float(outcome.provenance["alpha"]), color=colour, lw=1, ls=":")
    axes.set_xlabel("a (0: base, 1: tuned); dashed: validation, dotted: the a that it chose")
    axes.set_ylabel(headline_words(outcomes[0]))
    if len(outcomes) > 1:
        legend(axes, [o.model for o in outcomes], ink)
    plain(figure, axes, ink)
    return figure


def ends_table(outcomes: Sequence[Outcome], name: str) -> str:
    """A row a model: base, merged and tuned with intervals, and what merging adds to either."""
    rows = []
    for o in outcomes:
        both = ends(o)
        if both is None:
            continue
        base, tuned = both
        rows.append(
            [
                esc(o.model), esc(o.provenance["base"]), number(float(o.provenance["alpha"]), 2),
                *(_cell(m) for m in (base, o.main, tuned)),
                _cell(o.metric(f"{o.headline}_gain", BASE), "+"),
                *(_cell(o.metric(f"{o.headline}_difference", end), "+") for end in (BASE, TUNED)),
            ]
        )  # fmt: skip
    head = ("tuned model", "base", "a", "base (a = 0)", "merged", "tuned (a = 1)", "tuned − base",
            "merged − base", "merged − tuned")  # fmt: skip
    return table(head, rows, name, words_in=2)


def _cell(metric: Metric | None, sign: str = "") -> str:
    if metric is None or metric.value is None:
        return "–"
    value = f"{metric.value:{sign}.3f}"
    if metric.low is None or metric.high is None:
        return value
    return f'{value}<br><span class="soft">{metric.low:{sign}.3f} – {metric.high:{sign}.3f}</span>'
