"""The sweep of an interpolation as a table on the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval_zero_shot.outcome import Metric, Outcome

if TYPE_CHECKING:
    from eval_zero_shot.interpolation import Sweep

COLUMNS = 3
BLUE, ORANGE = "#1f5fa8", "#c65d00"


def plot_sweep(found: Sweep, made: Sequence[Outcome], validation: str, test: str, path: Path) -> None:
    """Write a PNG: a panel a task, validation and test over a, and the a that was chosen.

    made: outcomes of base, merged and tuned of each task, whose test intervals are drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(found.results)
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    alphas = [point.alpha for point in found.points]
    for axis, task in zip(axes.flat, tasks):
        axis.axvline(found.chosen, color="black", lw=1, ls=":", label=f"chosen on {validation}: a = {found.chosen:g}")
        values = [point.validation[task] for point in found.points]
        axis.plot(alphas, values, "o--", color=ORANGE, ms=3.5, label=f"{validation} (chooses)")
        axis.plot(alphas, [point.test[task] for point in found.points], "o-", color=BLUE, ms=3.5, label=test)
        for x, outcome in zip((0.0, found.chosen, 1.0), (o for o in made if o.task == task)):
            main = outcome.main
            if main.low is not None and main.high is not None:
                axis.vlines(x, main.low, main.high, color=BLUE, lw=4, alpha=0.3, zorder=1)
        axis.set_title(task.replace("$", r"\$"), fontsize=10)
        axis.set_xlabel("a   (0: base, 1: tuned)")
        axis.set_ylabel(next(o.headline for o in made if o.task == task).replace("_", " "))
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in list(axes.flat)[len(tasks) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    try:
        figure.savefig(path, dpi=150, format="png", metadata={"Software": None})
    finally:
        plt.close(figure)


def print_sweep(found: Sweep, made: Sequence[Outcome], validation: str, test: str) -> None:
    """The choice, and what it gains and forgets on test, a row a task."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    curve = ", ".join(f"{p.alpha:g}: {p.mean:.3f}" for p in found.points)
    console.print(f"validation ('{validation}'), mean headline by a: {curve}", highlight=False)
    table = Table("task", "model", title=f"a = {found.chosen:g}, on split '{test}'", box=SIMPLE_HEAD)
    for heading in ("headline", "merged − it"):
        table.add_column(heading, justify="right")
    forgotten = []
    for task in found.results:
        base, merged, tuned = (o for o in made if o.task == task)
        if tuned.main.value < base.main.value:  # type: ignore[operator]
            forgotten.append(task)
        for name, outcome in ((task, base), ("", tuned), ("", merged)):
            difference = merged.metric(f"{merged.headline}_difference", outcome.model)
            table.add_row(
                f"{name} ({outcome.headline})" if name else "",
                outcome.model,
                _cell(outcome.main),
                _cell(difference, "+") if difference else "",
            )
    console.print(table)
    if forgotten:
        console.print(f"tuning lost on {len(forgotten)} of {len(found.results)} tasks: {', '.join(forgotten)}")


def _cell(metric: Metric, sign: str = "") -> str:
    if metric.value is None:
        return "–"
    if metric.low is None or metric.high is None:
        return f"{metric.value:{sign}.3f}"
    return f"{metric.value:{sign}.3f} ({metric.low:{sign}.3f} to {metric.high:{sign}.3f})"
