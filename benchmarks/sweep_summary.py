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

from benchmarks.scores import Scores, outcome_of, read_scores
from eval_zero_shot.outcome import Outcome
from eval_zero_shot.statistics import Interval, macro_difference, macro_over_runs

SAME = ("task_sha256", "geometry_sha256", "view_sha256", "data_sha256", "rows_sha256")


def summarise(
    folders: dict[str, Sequence[Path]], ours: str, theirs: str, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Plain JSON: per arm macro AUROC, findings, retrieval and step time; differences `ours` - `theirs`, paired by
    patient and seed. Intervals are nested: patients resampled inside every draw of seeds.

    Args:
        folders: arm -> finished run folders, in the order of the seeds.

    Raises:
        ValueError: runs that were scored on other studies, prompts or preprocessing.
    """
    results = {arm: [outcome_of(f / "results") for f in runs] for arm, runs in folders.items()}
    scores = {arm: [read_scores(outcome) for outcome in runs] for arm, runs in results.items()}
    _require_same([o.provenance for runs in results.values() for o in runs])
    options = {"resamples": resamples, "seed": seed}
    findings = scores[ours][0].findings

    def differ(pick: Any) -> dict[str, Any]:
        return asdict(macro_difference([pick(s) for s in scores[ours]], [pick(s) for s in scores[theirs]], **options))

    return {
        "arms": {arm: _arm(list(folders[arm]), results[arm], scores[arm], options) for arm in folders},
        "difference": {
            "of": f"{ours} - {theirs}",
            "macro": differ(lambda s: s.run),
            "findings": {name: differ(lambda s, name=name: s.finding(name)) for name in findings},
        },
        "provenance": {name: results[ours][0].provenance.get(name) for name in SAME},
        "machine": _json(next(iter(folders[ours])) / "environment.json"),
    }


def _arm(folders: list[Path], results: list[Outcome], scores: list[Scores], options: Any) -> dict[str, Any]:
    over = macro_over_runs([s.run for s in scores], **options)
    return {
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


def _require_same(provenances: Sequence[Mapping[str, Any]]) -> None:
    for name in SAME:
        if len({p.get(name) for p in provenances}) > 1:
            raise ValueError(f"runs differ in {name}: scores of other studies, words or preprocessing do not compare")


def step_seconds(folder: Path) -> float | None:
    """Median seconds a step of a run, by the clock of its TensorBoard file; None where it has fewer than two entries.

    Scores and checkpoints fall into few of the intervals, so the median is that of training alone.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    events = board.Scalars("loss") if "loss" in board.Tags()["scalars"] else []
    pairs = [(a, b) for a, b in itertools.pairwise(events) if b.step > a.step]
    return float(np.median([(b.wall_time - a.wall_time) / (b.step - a.step) for a, b in pairs])) if pairs else None


def write(out: Path, summary: dict[str, Any]) -> Path:
    """`out/summary.json`, written aside, then renamed."""
    out.mkdir(parents=True, exist_ok=True)
    path, aside = out / "summary.json", out / f".summary.{os.getpid()}.tmp"
    aside.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
    return path


def markdown(summary: dict[str, Any]) -> str:
    """Tables as benchmarks/RESULTS.md holds them."""
    arms, difference = summary["arms"], summary["difference"]
    seeds = " and ".join(str(len(arm["runs"])) for arm in arms.values())
    head = ["", *arms, difference["of"]]
    patients = difference["macro"]["patients"]
    lines = [f"{seeds} seeds; 95% intervals over seeds and {patients} held-out patients.", ""]
    lines += [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    lines.append(_row("**macro AUROC**", [a["macro"] for a in arms.values()], difference["macro"]))
    for name, value in difference["findings"].items():
        lines.append(_row(name, [a["findings"][name] for a in arms.values()], value))
    lines.append(_line(["macro AUROC, synonyms", *(_number(a["synonym_macro"]) for a in arms.values()), ""]))
    for i, entry in enumerate(next(iter(arms.values()))["retrieval"]):
        label = f"{entry['direction'].replace('_', ' ')} R@{entry['k']} of {entry['pool']}"
        label += f" (chance {_number(entry['chance'])})"
        lines.append(_line([label, *(_number(a["retrieval"][i]["value"]) for a in arms.values()), ""]))
    lines.append(_line(["seconds a step, in these runs", *(_number(a["step_seconds"]) for a in arms.values()), ""]))
    return "\n".join(lines)


def _row(label: str, intervals: Sequence[dict[str, Any]], difference: dict[str, Any]) -> str:
    return _line([label, *(_span(Interval(**i)) for i in intervals), _span(Interval(**difference), "+.3f")])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _span(interval: Interval, form: str = ".3f") -> str:
    if interval.low is None or interval.high is None:
        return _number(interval.value)
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
