"""What a weight interpolation found, as outcomes: of three models for the command, of one for a suite.

The merged model's outcome holds the sweep, the headline at (alpha, split), with intervals where base, merged and tuned
are shown, its differences to both ends (auroc_difference), and that of tuned to base (auroc_gain). Never imports torch:
tables and pages read these outcomes with `ends`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eval_zero_shot.outcome import Metric, Outcome

if TYPE_CHECKING:
    import pandas as pd

    from eval_zero_shot.interpolation import Merged, Point

POINT = "a point of the sweep"  # why it has no interval
BASE, TUNED = "base", "tuned"  # how a suite's outcome calls the two ends


def of_three(merged: Merged, names: Sequence[str]) -> list[Outcome]:
    """An outcome a task and model: base, merged and tuned, called as `names` says. The merged one's also hold the sweep
    and its differences, each of the parent it is to."""
    made = []
    shas = (merged.base_sha256, merged.sha256, merged.tuned_sha256)
    for task, three in merged.sweep.results.items():
        for place, (name, sha, outcome) in enumerate(zip(names, shas, three, strict=True)):
            more = _swept(merged, task, (names[0], names[2])) if place == 1 else []
            made.append(
                replace(
                    outcome, model=name, model_sha256=sha, metrics=(*outcome.metrics, *more),
                    provenance={**outcome.provenance, "validation_split": merged.validation},
                    notes=(_chosen(merged, names[0], names[2]), *outcome.notes),
                )
            )  # fmt: skip
    return made


def of_one(
    merged: Merged, keys: Sequence[str], name: str, base: str, place: str, chosen: str | None = None
) -> list[Outcome]:
    """An outcome a task, of protocol interpolation and of the tuned model: what merging makes of it.

    Its headline and scores are the merged model's; the ends are there as points of the sweep, as differences (of
    "base" and "tuned") and as variants of the scores ("alpha=0", "alpha=1").

    keys: of the validation studies. name, base: how tables call the two models. place: where the release lies, relative
    to the folder of the run. chosen: how the choice is told, where it is not that of one shard set.
    """
    known = {
        "validation_split": merged.validation,
        "validation_rows_sha256": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        "alpha": merged.sweep.chosen,
        "base": base,
        "base_sha256": merged.base_sha256,
        "merged_sha256": merged.sha256,
    }
    notes = (chosen or _chosen(merged, base, name), f"The merged release lies in {place}.")
    return [
        replace(
            outcome, protocol="interpolation", model=name, model_sha256=merged.tuned_sha256,
            metrics=(*outcome.metrics, *_swept(merged, task, (BASE, TUNED))),
            provenance={**outcome.provenance, **known}, notes=(*notes, *outcome.notes),
            scores=_with_ends(outcome, {"alpha=0": first, "alpha=1": last}),
        )
        for task, (first, outcome, last) in merged.sweep.results.items()
    ]  # fmt: skip


def ends(outcome: Outcome) -> tuple[Metric, Metric] | None:
    """The headline of base and tuned on the split that is shown; None for an outcome of another protocol."""
    if outcome.protocol != "interpolation":
        return None
    found = [point for point in points(outcome, str(outcome.provenance.get("split"))) if point.at["alpha"] in (0, 1)]
    return found[0], found[1]


def points(outcome: Outcome, split: str) -> list[Metric]:
    """The sweep on a split, from base to tuned."""
    found = [m for m in outcome.metrics if m.name == outcome.headline and not m.of and m.at.get("split") == split]
    return sorted((m for m in found if "alpha" in m.at), key=lambda m: float(m.at["alpha"]))


def _swept(merged: Merged, task: str, parents: tuple[str, str]) -> list[Metric]:
    """The sweep of a task, then the merged model's differences to both ends, and the tuned one's gain."""
    found = merged.sweep
    base, middle, tuned = found.results[task]
    shown = {1.0: tuned.main, found.chosen: middle.main, 0.0: base.main}
    metrics = [_point(point, task, merged, middle.headline, shown.get(point.alpha)) for point in found.points]
    to_base, to_tuned, tuned_to_base = found.differences(task, merged.resamples, merged.seed)
    return [m for both in metrics for m in both] + [
        replace(to_base, of=parents[0]),
        replace(to_tuned, of=parents[1]),
        replace(tuned_to_base, name=f"{middle.headline}_gain", of=parents[0]),
    ]


def _point(point: Point, task: str, merged: Merged, headline: str, shown: Metric | None) -> list[Metric]:
    """On validation, where the task had a part in the choice, and on the split that is shown."""
    at: dict[str, Any] = {"alpha": point.alpha}
    n = {split: len(rows) for split, rows in merged.rows.items()}
    where = {**at, "split": merged.validation}
    on_validation = [
        Metric(headline, point.validation[name], at=where, n=n[merged.validation], reason=POINT)
        for name in (task,)
        if name in point.validation
    ]
    on_test = Metric(headline, point.test[task], n=n[merged.test], reason=POINT) if shown is None else shown
    return [*on_validation, replace(on_test, at={**at, "split": merged.test})]


def _with_ends(outcome: Outcome, others: dict[str, Outcome]) -> pd.DataFrame:
    import pandas as pd

    tables = [outcome.scores]
    for variant, other in others.items():
        assert other.scores is not None  # a classification always has
        tables.append(other.scores[other.scores["variant"] == ""].assign(variant=variant))
    return pd.concat(tables, ignore_index=True)


def _chosen(merged: Merged, base: str, tuned: str) -> str:
    found = merged.sweep
    return (
        f"WiSE-FT between {base} (a = 0) and {tuned} (a = 1): a = {found.chosen:g}, chosen on split "
        f"'{merged.validation}' by the mean over {len(found.results)} tasks; shown on '{merged.test}'."
    )
