"""Outcomes out of a results folder of version 1 (`results.json` of one task, `scores.csv`), until nothing writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.results import read_results


def version1_outcomes(folder: Path, model: str) -> list[Outcome]:
    """Classification, and retrieval where there was one, each with what version 1 kept of it.

    Raises EvalError where the folder holds no results that can be read.
    """
    import pandas as pd

    results = read_results(folder)
    provenance = {k: v for k, v in results["provenance"].items() if k != "prompts"}
    shared: dict[str, Any] = {
        "task": results["task"], "model": model, "studies": results["studies"], "scans": results["studies"],
        "patients": results["patients"], "model_sha256": provenance.get("release_sha256") or "",
        "provenance": provenance,
    }  # fmt: skip
    table = pd.read_csv(folder / "scores.csv", dtype={"key": str, "patient": str}, float_precision="round_trip")
    table["variant"] = table["prompts"].where(table["prompts"] != "main", "")
    scores = table.rename(columns={"finding": "of"})[["key", "patient", "variant", "of", "score", "label"]]
    metrics = [
        _metric("auroc", results["macro"], results["macro_interval"]),
        Metric("auprc", results["macro_auprc"]),
    ]
    if results["synonym_macro"] is not None:
        words = {"prompts": "synonyms"}
        metrics.append(_metric("auroc", results["synonym_macro"], results["synonym_interval"], at=words))
    for name, f in results["per_finding"].items():
        n = f["n_pos"] + f["n_neg"]
        metrics.append(_metric("auroc", f["auroc"], f["interval"], name, n, f["reason"]))
        for key in ("auprc", "f1", "balanced_accuracy"):
            metrics.append(Metric(key, f.get(key), of=name, n=n))
        if f["synonym_auroc"] is not None:
            metrics.append(Metric("auroc", f["synonym_auroc"], of=name, at={"prompts": "synonyms"}, n=n))
    names = tuple(results["per_finding"])
    prompts = results["provenance"].get("prompts") or {}
    found = [
        Outcome("classification", headline="auroc", metrics=tuple(metrics), classes=names, prompts=prompts,
                scores=scores, **shared)
    ]  # fmt: skip
    recalls = [r for r in results["retrieval"] if r["value"] is not None]
    if recalls:
        first = [r["value"] for r in recalls if r["pool"] == recalls[0]["pool"]]
        metrics = [Metric("mean_recall", sum(first) / len(first))]
        for r in recalls:
            at = {"k": r["k"], "pool": r["pool"]}
            of, n, span = r["direction"], r["studies"], (r["partition_low"], r["partition_high"])
            metrics.append(Metric("recall", r["value"], *span, of, at, n, method="partition"))
            metrics.append(Metric("chance", r["chance"], of=of, at=at, n=n))
        found.append(Outcome("retrieval", headline="mean_recall", metrics=tuple(metrics), **shared))
    return found


def is_version1(folder: Path) -> bool:
    """Whether `results.json` there is of version 1."""
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("results_version") == 1


def _metric(
    name: str, value: float | None, interval: dict[str, Any] | None, of: str = "", n: int = 0,
    reason: str | None = None, at: dict[str, Any] | None = None,
) -> Metric:  # fmt: skip
    span = interval or {}
    method = span.get("method") if span.get("low") is not None else None
    why = reason or span.get("reason")
    return Metric(name, value, span.get("low"), span.get("high"), of, at or {}, n, method=method, reason=why)
