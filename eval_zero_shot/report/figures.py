"""Plots of a report, each as SVG for the page (text in the page's colour) and as PNG for slides."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.report.wording import one_of_recalls, words

INK = "#123456"  # replaced by currentColor in the SVG, so that one drawing serves light and dark
PNG_INK = "#222222"
ACCENT, SECOND = "#2a7fb8", "#c8641b"
# One colour and one shape a model, in tables' order; page.css and curves.js have the same.
PALETTE = (ACCENT, SECOND, "#2e9e5b", "#9a5fc0", "#c94f5d", "#8a8a2a", "#1f9aa0", "#b0659a")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_BARS = 24
NARROW = 3.6  # inches


def auroc_plot(outcomes: Sequence[Outcome], ink: str) -> Any | None:
    """Findings of one task from best to worst (under the first model) with intervals, one colour a model; of a single
    model also its synonyms as hollow marks; chance as a line. None where no finding has a value."""
    import matplotlib.pyplot as plt

    found = [
        {m.of: m for m in o.metrics if m.name == "auroc" and m.of and not m.at and m.value is not None}
        for o in outcomes
    ]
    names = sorted(
        {n for of in found for n in of}, key=lambda n: (next(of[n].value or 0.0 for of in found if n in of), n)
    )
    if not names:
        return None
    step = 0.8 / len(outcomes) if len(outcomes) > 1 else 0.0
    figure, axes = plt.subplots(
        figsize=(7.0, 0.9 + (0.3 if len(outcomes) == 1 else 0.16 + 0.14 * len(outcomes)) * len(names))
    )
    shown = [0.43]
    for i, (outcome, of) in enumerate(zip(outcomes, found, strict=True)):
        colour, shape = PALETTE[i % len(PALETTE)], SHAPES[i % len(SHAPES)]
        for y, name in enumerate(names):
            m, place = of.get(name), y + step * ((len(outcomes) - 1) / 2 - i)
            if m is None or m.value is None:
                continue
            shown.append(m.value if m.low is None else m.low)
            if m.low is not None and m.high is not None:
                axes.hlines(place, m.low, m.high, color=colour, lw=3 if len(outcomes) == 1 else 2, alpha=0.45)
            axes.plot(m.value, place, shape, color=colour, ms=6 if len(outcomes) == 1 else 4.5)
            other = _reworded(outcome, name) if len(outcomes) == 1 else None
            if other is not None and other.value is not None:
                shown.append(other.value)
                axes.plot(other.value, place, "o", mfc="none", mec=SECOND, ms=6)
    axes.axvline(0.5, color=ink, lw=1, ls=":")
    axes.set_yticks(range(len(names)), [n.replace("_", " ").replace("$", r"\$") for n in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(max(-0.01, min(shown) - 0.03), 1.01)
    hollow = len(outcomes) == 1 and any(_reworded(outcomes[0], name) for name in names)
    axes.set_xlabel(f"AUROC (95 % intervals; {'hollow: other prompts; ' if hollow else ''}dotted: chance)")
    if len(outcomes) > 1:
        legend(axes, [o.model for o in outcomes], ink)
    plain(figure, axes, ink)
    return figure


def _reworded(outcome: Outcome, finding: str) -> Metric | None:
    """A finding's AUROC under another prompt set, where it was scored by finding."""
    return next(
        (m for m in outcome.metrics if m.name == "auroc" and m.of == finding and set(m.at) == {"prompts"}), None
    )


def shots_plot(outcomes: Sequence[Outcome], ink: str) -> Any | None:
    """A probe's headline metric (or whatever it has by shots) over labelled cases a class, one line a model, each draw
    of an interval as a band; None where nothing is by shots."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    series: dict[str, dict[str, list[Metric]]] = {}
    for o in outcomes:
        for m in o.metrics:
            if "shots" in m.at and not m.of and m.value is not None and "draw" not in m.at:
                rest = ", ".join(f"{k} {v}" for k, v in m.at.items() if k != "shots")
                label = f"{m.name}, {rest}" if rest else m.name
                series.setdefault(label, {}).setdefault(o.model, []).append(m)
    if not series:
        return None
    headline = outcomes[0].headline
    label = min(series, key=lambda s: (s != headline, not s.startswith(headline), s))
    figure, axes = plt.subplots(figsize=(7.0, 3.2))
    ticks: set[int] = set()
    for i, (model, metrics) in enumerate(series[label].items()):
        colour, shape = PALETTE[i % len(PALETTE)], SHAPES[i % len(SHAPES)]
        metrics.sort(key=lambda m: float(m.at["shots"]))
        x = [float(m.at["shots"]) for m in metrics]
        ticks.update(int(v) for v in x)
        y = [float(m.value or 0.0) for m in metrics]
        axes.plot(x, y, shape + "-", color=colour, ms=5, lw=1.4, label=model)
        low, high = ([float(v if v is not None else w) for v, w in zip(side, y, strict=True)]
                     for side in ([m.low for m in metrics], [m.high for m in metrics]))  # fmt: skip
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(v) for v in sorted(ticks)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("labelled cases a class (shots)")
    axes.set_ylabel(words(label))
    if len(series[label]) > 1:
        legend(axes, list(series[label]), ink)
    plain(figure, axes, ink)
    return figure


def training_plot(metrics: Path, ink: str) -> Any | None:
    """Training loss and the selection score over steps, from a run's metrics.csv; None where it holds no loss."""
    import matplotlib.pyplot as plt

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with metrics.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["name"] in ("loss", "select/macro_auroc"):
                series[row["name"]].append((int(row["step"]), float(row["value"])))
    if not series["loss"]:
        return None
    figure, axes = plt.subplots(figsize=(7.0, 2.6))
    steps, losses = zip(*series["loss"], strict=True)
    axes.plot(steps, losses, "." if len(steps) == 1 else "-", color=ACCENT, lw=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss", color=ACCENT)
    plain(figure, axes, ink)
    if series["select/macro_auroc"]:
        right = axes.twinx()
        right.plot(*zip(*series["select/macro_auroc"], strict=True), "o-", color=SECOND, ms=4, lw=1.2)
        right.set_ylabel("macro AUROC, selection split", color=SECOND)
        plain(figure, right, ink)
        right.spines["right"].set_visible(True)
    return figure


def recall_plot(outcomes: Sequence[Outcome], ink: str) -> Any | None:
    """Recall of one task's retrieval against chance, one bar a model; None where there is none."""
    import matplotlib.pyplot as plt

    by = [
        {(m.of, tuple(m.at.items())): m for m in o.metrics if m.name == "recall" and m.value is not None}
        for o in outcomes
    ]
    groups: dict[tuple[str, Any], list[Any]] = {}
    for key in dict.fromkeys(k for of in by for k in of if one_of_recalls(dict(k[1]))):
        groups.setdefault((key[0], dict(key[1]).get("pool")), []).append(key)
    if not groups:
        return None
    each = max(1, MOST_BARS // len(groups))  # the smallest k of every pool rather than the first pools alone
    keys = [key for group in groups.values() for key in group[:each]]
    n = len(outcomes)
    figure, axes = plt.subplots(figsize=(7.0, 0.9 + (0.2 + 0.14 * n) * len(keys)))
    labels = []
    for y, key in enumerate(reversed(keys)):
        for i, (outcome, of) in enumerate(zip(outcomes, by, strict=True)):
            m, place = of.get(key), y + 0.7 / n * ((n - 1) / 2 - i)
            if m is None or m.value is None:
                continue
            axes.barh(place, m.value, color=PALETTE[i % len(PALETTE)], alpha=0.75, height=0.62 / n)
            chance = outcome.metric("chance", m.of, **m.at)
            beside = m.value
            if chance is not None and chance.value is not None:
                beside = max(beside, chance.value) if abs(beside - chance.value) < 0.1 else beside  # not on the line
                if i == 0:
                    axes.plot([chance.value] * 2, [y - 0.38, y + 0.38], color=ink, lw=2)
            axes.text(beside + 0.01, place, f"{m.value:.2f}", va="center", color=ink, fontsize=9 if n == 1 else 7)
        at = dict(key[1])
        pool = f" of {at['pool']}" if "pool" in at else ""
        texts = f"{at['texts']}: " if "texts" in at else ""
        labels.append(f"{texts}{words(key[0])}, R@{at.get('k', '?')}{pool}")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("share of queries (line: chance); identical reports count as hits")
    if n > 1:
        legend(axes, [o.model for o in outcomes], ink)
    plain(figure, axes, ink)
    return figure


def legend(axes: Any, names: Sequence[str], ink: str, columns: int = 3) -> None:
    """The models' marks above the plot, so that they cover nothing."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=PALETTE[i % len(PALETTE)], marker=SHAPES[i % len(SHAPES)], lw=2, ms=5)
        for i in range(len(names))
    ]
    axes.legend(
        marks, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=9, labelcolor=ink
    )
    for text in axes.get_legend().get_texts():  # a $ in a name is no formula
        text.set_parse_math(False)


def plain(figure: Any, axes: Any, ink: str) -> None:
    """Without a frame, in the colour of the page's text."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.tick_params(colors=ink, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9)
        if label.get_color() not in (ACCENT, SECOND):
            label.set_color(ink)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)


def narrow(figure: Any) -> None:
    """The same drawing for a window of a telephone's width: words beside and below it wrap, a model a line."""
    figure.set_size_inches(NARROW, figure.get_figheight())
    for axes in figure.axes:
        beside = [_wrapped(label.get_text(), 20) for label in axes.get_yticklabels()]
        axes.set_yticks(axes.get_yticks(), beside, linespacing=0.9)
        axes.set_xlabel(_wrapped(axes.get_xlabel(), 44))
        if axes.get_legend() is not None:
            legend(axes, [text.get_text() for text in axes.get_legend().get_texts()], INK, 1)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def render(draw: Callable[[str], Any | None], png: Path) -> str | None:
    """Draw `png` on white, and the HTML of the page's two drawings: of its own width, and `narrow`, of which page.css
    shows one. None where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "voxclip", "font.family": "DejaVu Sans"}):
        figure = draw(PNG_INK)
        if figure is None:
            return None
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=150, bbox_inches="tight", facecolor="white", metadata={"Software": None})
        plt.close(figure)
        figure = draw(INK)
        assert figure is not None
        name = png.stem.replace("_", "-")
        whole = _svg(figure, name)
        narrow(figure)
        small = _svg(figure, f"{name}-narrow")
        plt.close(figure)
    return f'<div class="wide">{whole}</div><div class="narrow">{small}</div>'


def _svg(figure: Any, prefix: str) -> str:
    """In the colour of the page's text. prefix: of its ids, since those of two drawings in one page must not meet."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
