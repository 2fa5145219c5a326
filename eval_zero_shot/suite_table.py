"""Outcomes of a suite on a terminal: a row a task and model, the headline of each with its interval, and below a merged
model both ends of its interpolation."""

from __future__ import annotations

from collections.abc import Sequence

from eval_zero_shot.interpolation_outcomes import ends
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
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("task, metric, split", overflow="fold")
    table.add_column("model", overflow="fold")
    several = ["scans"] if any(o.scans != o.studies for o in scored) else []
    for heading in ("value", "95 % interval", *several, "studies", "patients"):
        table.add_column(heading, justify="right", no_wrap=True)
    for protocol, task in dict.fromkeys((o.protocol, o.task) for o in scored):
        here = [o for o in scored if (o.protocol, o.task) == (protocol, task)]
        named = task if protocol in task else f"{task} {protocol}"
        for i, o in enumerate(here):
            said = f"{named}, {o.headline}, {o.provenance.get('split', '')}".rstrip(", ") if i == 0 else ""
            both = ends(o)
            name = o.model if both is None else f"{o.model} (a = {o.provenance['alpha']:g})"
            counts = [*([o.scans] if several else []), o.studies, o.patients]
            table.add_row(said, name, *_cells(o.main), *map(str, counts))
            for end, metric in zip(("base (a = 0)", "tuned (a = 1)"), both or ()):
                table.add_row("", f"– {end}", *_cells(metric), *[""] * len(counts))
    console.print(table)
    for o in scored:
        if o.main.value is None:
            console.print(f"{o.model}, {o.task}: {o.main.reason}", highlight=False)


def _cells(metric: Metric) -> tuple[str, str]:
    if metric.value is None:
        return "–", ""
    return f"{metric.value:.3f}", "–" if metric.low is None else f"{metric.low:.3f}–{metric.high:.3f}"
