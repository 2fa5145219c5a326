"""What a run gained on its own domain and forgot on others, and what merging it with its start makes of both.

A run that is adapted to one domain forgets others; interpolating its weights with those it started from often keeps
both (WiSE-FT, arXiv 2109.01903; the finding of mu-Bench, arXiv 2407.01791). Here base, adapted and merged are measured
on several domains, each of its own studies and task. a is chosen by the mean headline over the domains that name a
validation split, usually the run's own alone; the others are measured and choose nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_zero_shot.errors import EvalError
from eval_zero_shot.interpolation import ALPHAS, Merged, Point, Scorer, Sweep, choose
from eval_zero_shot.interpolation_outcomes import BASE, TUNED, ends, of_one
from eval_zero_shot.outcome import Metric, Outcome

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from encoders.interpolate import Pair
    from eval_zero_shot.inputs import Inputs
    from eval_zero_shot.tasks import Task


WIDTH = 110  # of the table where there is no terminal (SLURM logs)


@dataclass(frozen=True)
class Domain:
    """A question about some studies. name: how tables call it. task: None is retrieval. rows: of the splits named.

    test: the split that is shown. validation: one that has a part in the choice of a; None: measured only.
    """

    name: str
    task: Task | None
    shards: Any
    rows: Mapping[str, NDArray]
    test: str
    validation: str | None = None

    def require(self) -> None:
        """Raise EvalError where it cannot be scored: said before hours of training, not after them."""
        for split in filter(None, (self.validation, self.test)):
            if not len(self.rows[split]):
                raise EvalError(
                    f"{self.name}: no study in split '{split}'",
                    why="what the run forgets could not be measured, or alpha not be chosen",
                    fix=f"name one of its splits: {', '.join(self.shards.manifest['splits'])}",
                )
        if self.task is not None:
            from eval_zero_shot.labels import require_labels

            require_labels(self.shards, self.task)
            if not set(self.task.labels) & set(self.shards.label_names):
                raise EvalError(
                    f"{self.name}: the studies have none of its labels",
                    why="nothing could be scored when the run ends",
                    fix=f"a task for what they have: {', '.join(self.shards.label_names) or 'none (task: null)'}",
                )


def merge_domains(
    pair: Pair, inputs: Inputs, domains: Sequence[Domain], release: Path, *, name: str, base: str = "base",
    alphas: Sequence[float] = ALPHAS, resamples: int = 1000, seed: int = 0,
) -> list[Outcome]:  # fmt: skip
    """Sweep between two releases on all domains, write the model of the a that was chosen as `release` (one that is
    there is replaced), and give an outcome a domain: of the merged model, with both ends and the paired differences.

    inputs: of the tuned release; its model gets the weights of every point, and ends with its own. name, base: how
    tables call merged and base.

    Raises:
        EvalError: no domain chooses, or one has no score.
        ReleaseError: `release` cannot be written.
    """
    if not any(domain.validation for domain in domains):
        raise EvalError("no domain has a validation split", why="a cannot be chosen", fix="name one")
    scorers = {d.name: Scorer(pair, replace(inputs, shards=d.shards, scans=None), d.rows, seed) for d in domains}
    every = sorted({0.0, 1.0, *map(float, alphas)})
    try:
        points = _points(pair, inputs, domains, scorers, every)
        alpha = choose(points)
        shown: dict[float, dict[str, Outcome]] = {}
        for a in {0.0, alpha, 1.0}:
            pair.set(inputs.loaded.model.clip, a)
            shown[a] = {d.name: scorers[d.name].results(a, d.test, d.task, resamples) for d in domains}
    finally:
        pair.set(inputs.loaded.model.clip, 1.0)
    from encoders.folder import inspect

    sha256 = inspect(pair.write(release, alpha, overwrite=True), verify=False).sha256
    choosers = [d.name for d in domains if d.validation]
    found = []
    for d in domains:
        three = shown[0.0][d.name], shown[alpha][d.name], shown[1.0][d.name]
        swept = Sweep(points, alpha, {d.name: three})
        merged = Merged(
            swept, release, sha256, pair.base_sha256, pair.tuned_sha256, d.rows, d.validation or "", d.test, resamples,
            seed,
        )  # fmt: skip
        keys = [d.shards.key(int(row)) for row in d.rows[d.validation]] if d.validation else []
        said = (
            f"WiSE-FT between base (a = 0) and the adapted weights (a = 1): a = {alpha:g}, chosen by "
            f"{', '.join(choosers)} on their validation splits" + (
                "." if d.validation else "; these studies are held out: they are measured and chose nothing."
            )
        )  # fmt: skip
        (outcome,) = of_one(merged, keys, name, base, release.name, said)
        found.append(
            replace(
                outcome, task=d.name, model_sha256=sha256,
                provenance={**outcome.provenance, "held_out": d.validation is None, "tuned_sha256": pair.tuned_sha256},
            )
        )  # fmt: skip
    return found


def _points(
    pair: Pair, inputs: Inputs, domains: Sequence[Domain], scorers: Mapping[str, Scorer], alphas: Sequence[float]
) -> tuple[Point, ...]:
    from data_shards.progress import track

    points = []
    for alpha in track(alphas, len(alphas), "merge", "points"):
        pair.set(inputs.loaded.model.clip, alpha)
        on_validation = {d.name: scorers[d.name].headline(alpha, d.validation, d.task) for d in domains if d.validation}
        on_test = {d.name: scorers[d.name].headline(alpha, d.test, d.task) for d in domains}
        points.append(Point(alpha, on_validation, on_test))
    return tuple(points)


def print_forgetting(outcomes: Sequence[Outcome]) -> None:
    """Base, adapted and merged on every domain with intervals, their differences, and a sentence on what was lost."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    alpha = outcomes[0].provenance["alpha"]
    table = Table("task", "weights", title=f"forgetting: a = {alpha:g} of the adapted weights", box=SIMPLE_HEAD)
    for heading in ("score", "− base", "− adapted"):
        table.add_column(heading, justify="right")
    for o in outcomes:
        base, adapted = ends(o) or (o.main, o.main)
        name = f"{o.headline}_difference"
        held = "held out, " if o.provenance["held_out"] else ""
        table.add_row(o.task, "base", _cell(base))
        said = f"{held}{o.studies} of {o.provenance['split']}"
        table.add_row(said, "adapted", _cell(adapted), _cell(o.metric(f"{o.headline}_gain", BASE), "+"))
        merged = (_cell(o.metric(name, end), "+") for end in (BASE, TUNED))
        table.add_row(o.headline, "merged", _cell(o.main), *merged, end_section=True)
    console.print(table)
    console.print(verdict(outcomes), highlight=False)


def verdict(outcomes: Sequence[Outcome]) -> str:
    """How many domains adapting lost on, and whether the merged model is at least as good as both ends on the mean."""
    three = [[m.value or 0.0 for m in (*(ends(o) or ()), o.main)] for o in outcomes]
    lost = [o.task for o, (base, adapted, _) in zip(outcomes, three, strict=True) if adapted < base]
    means = [sum(column) / len(three) for column in zip(*three, strict=True)]
    best = "is at least as good as both ends" if means[2] >= max(means[:2]) else "is not the best of the three"
    return (
        f"Adapting lost on {len(lost)} of {len(three)} tasks{': ' * bool(lost)}{', '.join(lost)}. Mean of the tasks: "
        f"base {means[0]:.3f}, adapted {means[1]:.3f}, merged {means[2]:.3f}; merged {best}."
    )


def _cell(metric: Metric | None, sign: str = "") -> str:
    if metric is None or metric.value is None:
        return "–"
    value = f"{metric.value:{sign}.3f}"
    return value if metric.low is None else f"{value} ({metric.low:{sign}.3f} to {metric.high:{sign}.3f})"
