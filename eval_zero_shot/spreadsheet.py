"""Outcomes as one CSV with columns that never change: those of CLIP_benchmark where it has them, ours behind them.

A row is a model and a task. CLIP_benchmark's `build` writes its columns in another order at every run; here a column
that has nothing to say is empty, and the header is the same for every file.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from eval_zero_shot.outcome import Outcome, Protocol

KS = (1, 5, 10, 50, 100)
FULL: dict[str, int | str] = {"pool": "full", "ties": "identical_texts"}
TASK_NAMES: dict[Protocol, str] = {
    "classification": "zeroshot_classification",
    "retrieval": "zeroshot_retrieval",
    "probe": "linear_probe",
    "head": "label_head",
    "vqa": "closed_vqa",
    "interpolation": "weight_interpolation",
}
# Column -> (protocol, metric, of, at). Retrieval: over the full pool, identical texts as hits.
SHARED: dict[str, tuple[Protocol, str, str, dict[str, int | str]]] = {
    "acc1": ("classification", "acc1", "", {}),
    "acc5": ("classification", "acc5", "", {}),
    "mean_per_class_recall": ("classification", "balanced_accuracy", "", {}),
    "mean_average_precision": ("classification", "auprc", "", {}),
    **{
        f"{column}_retrieval_recall@{k}": (
            "retrieval",
            "recall",
            direction,
            {"k": k, **FULL},
        )
        for column, direction in (("image", "text_to_image"), ("text", "image_to_text"))
        for k in KS
    },
    "lp_acc1": ("probe", "acc1", "", {}),
    "lp_acc5": ("probe", "acc5", "", {}),
    "lp_mean_per_class_recall": ("probe", "balanced_accuracy", "", {}),
}
OURS = ("protocol", "metric", "value", "low", "high", "level", "method", "studies", "scans", "patients",
        "auroc", "auprc", "model_sha256", "data_sha256", "split", "scan_choice")  # fmt: skip
COLUMNS = ("dataset", "model", "pretrained", "model_fullname", "task", "language", *SHARED, *OURS)


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """A dict a model and task, keys COLUMNS; audits have no row."""
    out: list[dict[str, object]] = []
    for o in outcomes:
        if o.protocol not in TASK_NAMES:
            continue
        main, row = o.main, dict.fromkeys(COLUMNS, None) | {"dataset": o.task, "model": o.model}
        row |= {"model_fullname": o.model, "task": TASK_NAMES[o.protocol], "language": "en", "protocol": o.protocol}
        for column, (protocol, name, of, at) in SHARED.items():
            if protocol == o.protocol and (found := o.metric(name, of, **at)) is not None:
                row[column] = found.value
        for name in ("auroc", "auprc"):
            row[name] = None if (found := o.metric(name)) is None else found.value
        row |= {"metric": main.name, "value": main.value, "low": main.low, "high": main.high, "level": main.level}
        row |= {"method": main.method, "studies": o.studies, "scans": o.scans, "patients": o.patients}
        row |= {"model_sha256": o.model_sha256}
        row |= {name: o.provenance.get(name) for name in ("data_sha256", "split", "scan_choice")}
        out.append(row)
    return out


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Written aside, then renamed."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(outcomes))
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(out.getvalue(), encoding="utf-8", newline="\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
