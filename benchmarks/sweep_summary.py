"""What a sweep found: arms side by side with intervals over seeds and patients, from the files its runs left."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.scores import Scores, outcome_of, read_recall, read_scores
from eval_zero_shot.outcome import Outcome
from eval_zero_shot.statistics import macro_difference, macro_over_runs, weighted_mean

SAME = ("task_sha256", "data_sha256", "rows_sha256")
BOTH_WAYS = "R@1 of 64, both ways"
SAME_PREPROCESSING = ("geometry_sha256", "view_sha256")


def summarise(
    folders: Mapping[str, Sequence[Path]], differences: Sequence[tuple[str, str]], systems: bool = False,
    resamples: int = 1000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Plain JSON: per arm macro AUROC, findings, retrieval and step time; differences, paired by patient and seed.
    Intervals are nested: patients resampled inside every draw of seeds.

    Args:
        folders: arm -> finished run folders, in the order of the seeds.
        differences: pairs of arms (a, b): a - b.
        systems: arms may have preprocessing of their own.

    Raises:
        ValueError: runs that were scored on other studies, prompts or preprocessing.
    """
    same = SAME if systems else SAME + SAME_PREPROCESSING
    results = {arm: [outcome_of(f / "results") for f in runs] for arm, runs in folders.items()}
    scores = {arm: [read_scores(outcome) for outcome in runs] for arm, runs in results.items()}
    retrieval = {arm: [outcome_of(f / "results", "retrieval") for f in runs] for arm, runs in folders.items()}
    hits = {arm: [read_recall(outcome) for outcome in runs] for arm, runs in retrieval.items()}
    for each in (results, retrieval):
        _require_same([o.provenance for runs in each.values() for o in runs], same)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    first = next(iter(folders))

    def differ(a: str, b: str, pick: Any) -> dict[str, Any]:
        pairs = list(zip(scores[a], scores[b], strict=False))  # seeds that both have
        return asdict(macro_difference([pick(s) for s, _ in pairs], [pick(s) for _, s in pairs], **options))

    def recall(a: str, b: str | None = None) -> dict[str, Any] | None:
        pairs = list(zip(hits[a], hits[b or a], strict=False))
        ours, theirs = ([one.run for one in side if one is not None] for side in zip(*pairs, strict=True))
        if len(ours) < len(pairs) or len(theirs) < len(pairs):
            return None
        if b is None:
            return asdict(macro_over_runs(ours, measure=weighted_mean, **options))
        return asdict(macro_difference(ours, theirs, measure=weighted_mean, **options))

    return {
        "arms": {
            arm: _arm(list(folders[arm]), results[arm], scores[arm], options) | {"recall_at_1_in_64": recall(arm)}
            for arm in folders
        },
        "differences": [
            {
                "of": f"{a} - {b}",
                "macro": differ(a, b, lambda s: s.run),
                "recall_at_1_in_64": recall(a, b),
                "findings": {
                    name: differ(a, b, lambda s, name=name: s.finding(name)) for name in scores[a][0].findings
                },
            }
            for a, b in differences
        ],
        "provenance": {name: results[first][0].provenance.get(name) for name in same},
        "machine": _json(folders[first][0] / "environment.json"),
    }


def _arm(folders: list[Path], results: list[Outcome], scores: list[Scores], options: Any) -> dict[str, Any]:
    over = macro_over_runs([s.run for s in scores], **options)
    recipe = yaml.safe_load((folders[0] / "recipe.yaml").read_text(encoding="utf-8"))
    return {
        "steps": recipe["train"]["steps"],
        "rate": recipe["optim"]["lr"],
        "runs": {f.name: r.main.value for f, r in zip(folders, results, strict=True)},
        "macro": asdict(over),
        "findings": {
            name: asdict(macro_over_runs([s.finding(name) for s in scores], **options)) for name in scores[0].findings
        },
        "synonym_macro": _mean(_value(r, "auroc", "", prompts="synonyms") for r in results),
        "retrieval": _retrieval([outcome_of(f / "results", "retrieval") for f in folders]),
        "step_seconds": _mean(step_seconds(f) for f in folders),
    }


def _retrieval(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Recall of each direction, k and pool, identical reports as hits, beside chance."""
    found = []
    for metric in outcomes[0].metrics:
        if metric.name != "recall" or metric.at.get("ties") != "identical_texts" or "noise" in metric.at:
            continue
        values = [_value(o, "recall", metric.of, **metric.at) for o in outcomes]
        k, pool = metric.at["k"], metric.at["pool"]
        chance = _value(outcomes[0], "chance", metric.of, **metric.at)
        found.append({"direction": metric.of, "k": k, "pool": pool, "chance": chance, "value": _mean(values),
                      "per_run": values})  # fmt: skip
    return found


def _value(outcome: Outcome, name: str, of: str, **at: Any) -> float | None:
    found = outcome.metric(name, of, **at)
    return None if found is None else found.value


def _require_same(provenances: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        if len({p.get(name) for p in provenances}) > 1:
            raise ValueError(f"runs differ in {name}: scores of other studies, words or preprocessing do not compare")


def loss_clock(folder: Path) -> list[tuple[int, float]]:
    """(step, wall-clock second) of every loss in a run's TensorBoard file, in the order of the steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return [(e.step, e.wall_time) for e in board.Scalars("loss")] if "loss" in board.Tags()["scalars"] else []


def step_seconds(folder: Path) -> float | None:
    """Median seconds a step of a run; None where its clock has fewer than two entries.

    Scores and checkpoints fall into few of the intervals, so the median is that of training alone.
    """
    pairs = [(a, b) for a, b in itertools.pairwise(loss_clock(folder)) if b[0] > a[0]]
    return float(np.median([(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs])) if pairs else None


def write(out: Path, summary: dict[str, Any]) -> Path:
    """`out/summary.json`, written aside, then renamed."""
    out.mkdir(parents=True, exist_ok=True)
    path, aside = out / "summary.json", out / f".summary.{os.getpid()}.tmp"
    aside.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
    return path


def markdown(summary: dict[str, Any]) -> str:
    """Tables as benchmarks/RESULTS.md holds them: arms, differences, findings."""
    arms, differences = summary["arms"], summary["differences"]
    first = next(iter(arms.values()))
    recalls = [
        i for i, entry in enumerate(first["retrieval"])
        if entry["k"] == 1 and any(arm["retrieval"][i]["value"] is not None for arm in arms.values())
    ]  # fmt: skip
    head = ["arm", "steps", "rate", "s a step", "**macro AUROC**", "synonyms", "each seed"]
    both_ways = [BOTH_WAYS] if any(arm["recall_at_1_in_64"] for arm in arms.values()) else []
    head += both_ways
    for i in recalls:
        entry = first["retrieval"][i]
        head.append(
            f"{entry['direction'].replace('_', ' ')} R@1 of {entry['pool']} (chance {_number(entry['chance'])})"
        )
    rows = [
        [
            name, str(arm["steps"]), f"{arm['rate']:g}", _number(arm["step_seconds"]), _span(arm["macro"]),
            _number(arm["synonym_macro"]), " ".join(_number(v) for v in arm["runs"].values()),
            *(_span(arm["recall_at_1_in_64"]) for _ in both_ways),
            *(_number(arm["retrieval"][i]["value"]) for i in recalls),
        ]
        for name, arm in arms.items()
    ]  # fmt: skip
    patients = first["macro"]["patients"]
    lines = [f"95 % intervals over seeds and {patients} held-out patients.", "", *_table(head, rows)]
    if differences:
        seeds = [str(d["macro"]["runs"]) for d in differences]
        told = [
            [d["of"], n, _span(d["macro"], "+.3f"), *(_span(d["recall_at_1_in_64"], "+.3f") for _ in both_ways)]
            for d, n in zip(differences, seeds, strict=True)
        ]
        lines += ["", *_table(["difference", "seeds", "macro AUROC", *both_ways], told)]
    names = list(first["findings"])
    each = [[name, *(_span(arm["findings"][name]) for arm in arms.values())] for name in names]
    return "\n".join([*lines, "", *_table(["finding", *arms], each)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _span(interval: Mapping[str, Any] | None, form: str = ".3f") -> str:
    if interval is None:
        return "–"
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if low is None or high is None:
        return _number(value)
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
