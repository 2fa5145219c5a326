"""Outcomes of a suite on a terminal: tasks down, models across, the headline of each with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from eval_zero_shot.outcome import Metric, Outcome


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """The verdict of audits first, then the table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for outcome in outcomes:
        if outcome.protocol == "audit":
            console.print(f"Audit of {outcome.model} on {outcome.task}", style="bold")
            for note in outcome.notes:
                console.print(f"  {note}", highlight=False, markup=False)
    scored = [o for o in outcomes if o.protocol != "audit"]
    if not scored:
        return
    models = list(dict.fromkeys(o.model for o in scored))
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("task", no_wrap=True)
    table.add_column("metric")
    for model in models:
        table.add_column(model, justify="right")
    table.add_column("studies", justify="right")
    table.add_column("patients", justify="right")
    for protocol, task in dict.fromkeys((o.protocol, o.task) for o in scored):
        here = {o.model: o for o in scored if (o.protocol, o.task) == (protocol, task)}
        first = next(iter(here.values()))
        cells = [_cell(here[model].main) if model in here else "failed" for model in models]
        counts = (str(first.studies), str(first.patients))
        table.add_row(task if protocol in task else f"{task} ({protocol})", first.headline, *cells, *counts)
    console.print(table)


def _cell(metric: Metric) -> str:
    if metric.value is None:
        return metric.reason or "–"
    span = "" if metric.low is None or metric.high is None else f" ({metric.low:.3f}–{metric.high:.3f})"
    return f"{metric.value:.3f}{span}"
