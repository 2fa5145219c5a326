"""Plots of a report, each as SVG for the page (text in the page's colour) and as PNG for slides."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

INK = "#123456"  # replaced by currentColor in the SVG, so that one drawing serves light and dark
PNG_INK = "#222222"
ACCENT, SECOND = "#2a7fb8", "#c8641b"


def auroc_plot(results: dict[str, Any], ink: str) -> Any:
    """Findings from best to worst with their intervals, synonyms as hollow marks, chance as a line."""
    import matplotlib.pyplot as plt

    found = {n: f for n, f in results["per_finding"].items() if f["auroc"] is not None}
    names = sorted(found, key=lambda n: found[n]["auroc"])
    figure, axes = plt.subplots(figsize=(7.0, 0.9 + 0.3 * len(names)))
    least = 0.4
    for y, name in enumerate(names):
        f = found[name]
        interval = f["interval"] or {}
        least = min(least, *(v - 0.03 for v in (f["auroc"], f["synonym_auroc"], interval.get("low")) if v is not None))
        if interval.get("low") is not None:
            axes.hlines(y, interval["low"], interval["high"], color=ACCENT, lw=3, alpha=0.45)
        axes.plot(f["auroc"], y, "o", color=ACCENT, ms=6)
        if f["synonym_auroc"] is not None:
            axes.plot(f["synonym_auroc"], y, "o", mfc="none", mec=SECOND, ms=6)
    axes.axvline(0.5, color=ink, lw=1, ls=":")
    axes.set_yticks(range(len(names)), [n.replace("_", " ").replace("$", r"\$") for n in names])
    axes.set_xlim(max(-0.01, least), 1.01)
    axes.set_xlabel("AUROC (filled: prompts with 95 % interval; hollow: synonyms; dotted: chance)")
    _plain(figure, axes, ink)
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
    _plain(figure, axes, ink)
    if series["select/macro_auroc"]:
        right = axes.twinx()
        right.plot(*zip(*series["select/macro_auroc"], strict=True), "o-", color=SECOND, ms=4, lw=1.2)
        right.set_ylabel("macro AUROC, selection split", color=SECOND)
        _plain(figure, right, ink)
        right.spines["right"].set_visible(True)
    return figure


def recall_plot(results: dict[str, Any], ink: str) -> Any | None:
    """Retrieval in pools against chance; None where there is none."""
    import matplotlib.pyplot as plt

    known = [r for r in results["retrieval"] if r["value"] is not None]
    if not known:
        return None
    figure, axes = plt.subplots(figsize=(7.0, 0.9 + 0.3 * len(known)))
    labels = []
    for y, r in enumerate(reversed(known)):
        axes.barh(y, r["value"], color=ACCENT, alpha=0.7, height=0.6)
        axes.plot([r["chance"]] * 2, [y - 0.38, y + 0.38], color=SECOND, lw=2)
        axes.text(r["value"] + 0.01, y, f"{r['value']:.2f}", va="center", color=ink, fontsize=9)
        labels.append(f"{r['direction'].replace('_', ' ')}, R@{r['k']} of {r['pool']}")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("share of queries (line: chance); identical reports count as hits")
    _plain(figure, axes, ink)
    return figure


def _plain(figure: Any, axes: Any, ink: str) -> None:
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


def render(draw: Callable[[str], Any | None], png: Path) -> str | None:
    """Draw twice: `png` on white, and an SVG string for the page. None where there is nothing to draw."""
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
        figure, out = draw(INK), io.StringIO()
        assert figure is not None
        figure.savefig(out, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
    prefix = png.stem.replace("_", "-")  # ids of two plots in one page must not meet
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
