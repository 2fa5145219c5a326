"""What an evaluation found, as data: to a dict, to files, to a table on the terminal."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.retrieve import Direction, Recall
from eval_zero_shot.statistics import Interval

if TYPE_CHECKING:
    from rich.console import Console

RESULTS_VERSION = 1
FEW = 15  # patients of a class below which an interval is printed with a warning


@dataclass(frozen=True)
class FindingResult:
    """One finding. `auroc` is None where a class is missing and `reason` says which; n_* count studies, *_patients
    patients. f1 and balanced_accuracy: of the sign of the score (eval_zero_shot.classify). synonym_auroc: the same
    labels under the task's synonyms (None: there are none, or a class is missing).
    """

    auroc: float | None
    auprc: float | None
    interval: Interval | None
    n_pos: int
    n_neg: int
    n_unknown: int
    pos_patients: int
    neg_patients: int
    synonym_auroc: float | None = None
    reason: str | None = None
    f1: float | None = None
    balanced_accuracy: float | None = None

    @property
    def too_few(self) -> bool:
        """Whether its interval rests on fewer than 15 patients with or without the finding."""
        return self.reason is None and min(self.pos_patients, self.neg_patients) < FEW


@dataclass(frozen=True)
class Cases:
    """Per-study scores, columns in the order of `names`; synonym columns are nan where a finding has no synonyms."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    patients: tuple[str, ...]
    labels_NL: NDArray[np.float64]
    positive_NL: NDArray[np.float64]
    negative_NL: NDArray[np.float64]
    synonym_positive_NL: NDArray[np.float64]
    synonym_negative_NL: NDArray[np.float64]

    @property
    def scores_NL(self) -> NDArray[np.float64]:
        return self.positive_NL - self.negative_NL


@dataclass(frozen=True)
class Results:
    """A whole evaluation.

    macro: plain mean AUROC over the findings not in `excluded` (None when all are); macro_interval: over patients.
    synonym_macro: the same with the task's synonyms, over the findings that have them. retrieval: see `recall`.
    provenance: what must be equal before two results may be compared (task, geometry, view, data, rows, versions).
    """

    task: str
    macro: float | None
    macro_auprc: float | None
    macro_interval: Interval | None
    per_finding: dict[str, FindingResult]
    excluded: dict[str, str]
    synonym_macro: float | None
    synonym_interval: Interval | None
    retrieval: tuple[Recall, ...]
    studies: int
    patients: int
    provenance: dict[str, Any]
    cases: Cases = field(repr=False, compare=False)

    def recall(self, direction: Direction, k: int = 1, pool: int = 64) -> Recall | None:
        """One entry of `retrieval`, or None when it was not asked for."""
        return next((r for r in self.retrieval if (r.direction, r.k, r.pool) == (direction, k, pool)), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-study scores, as JSON holds it: no nan, None where there is no value."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "cases"}
        plain["per_finding"] = {name: asdict(result) for name, result in self.per_finding.items()}
        plain["retrieval"] = [asdict(recall) for recall in self.retrieval]
        for name in ("macro_interval", "synonym_interval"):
            plain[name] = None if plain[name] is None else asdict(plain[name])
        return {"results_version": RESULTS_VERSION, **plain}

    def write(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `results.json` (results.schema.json says its form), `scores.csv` and the same as `scores.parquet` into
        `folder` (made if needed), each aside first, then renamed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        results, scores = folder / "results.json", folder / "scores.csv"
        contents = {
            scores: scores_csv(self.cases),
            results: json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n",
        }
        import pandas as pd

        kinds = {"key": str, "patient": str, "label": "Int8"}
        table = pd.read_csv(io.StringIO(contents[scores]), dtype=kinds, float_precision="round_trip")
        aside = folder / f".scores.{os.getpid()}.tmp"
        try:
            table.to_parquet(aside, index=False)
            os.replace(aside, folder / "scores.parquet")
        finally:
            aside.unlink(missing_ok=True)
        for path, text in contents.items():
            _replace(path, text)
        return results, scores


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json` of an evaluation. Raises EvalError where there is none that can be read."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(
            f"no readable results.json ({type(error).__name__})",
            why="there is nothing to show",
            fix="name the folder that eval_zero_shot.run wrote with --out",
        ) from None


def read_scores(folder: Path) -> dict[tuple[str, str], float]:
    """(key, finding) -> score under the task's own prompts, of `scores.csv`. Raises EvalError where it is missing."""
    try:
        with (folder / "scores.csv").open(encoding="utf-8", newline="") as opened:
            rows = [row for row in csv.DictReader(opened) if row["prompts"] == "main"]
            return {(row["key"], row["finding"]): float(row["score"]) for row in rows}
    except (OSError, KeyError, ValueError) as error:
        raise EvalError(
            f"no readable scores.csv beside results.json ({type(error).__name__})",
            why="studies could not be chosen by their scores",
            fix="copy the whole folder that eval_zero_shot.run wrote, or show numbers alone: --no-cases",
        ) from None


def scores_csv(cases: Cases) -> str:
    """One line a study, finding and prompt set: the two cosines, their difference, the label (empty: unknown)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "patient", "finding", "prompts", "score_pos", "score_neg", "score", "label"])
    sets = (
        ("main", cases.positive_NL, cases.negative_NL),
        ("synonyms", cases.synonym_positive_NL, cases.synonym_negative_NL),
    )
    for which, positive_NL, negative_NL in sets:
        for j, name in enumerate(cases.names):
            if np.isnan(positive_NL[:, j]).all():
                continue
            for i, (key, patient) in enumerate(zip(cases.keys, cases.patients, strict=True)):
                p, n, label = float(positive_NL[i, j]), float(negative_NL[i, j]), cases.labels_NL[i, j]
                shown = "" if np.isnan(label) else int(label)
                writer.writerow([key, patient, name, which, repr(p), repr(n), repr(p - n), shown])
    return out.getvalue()


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def print_table(results: Results, console: Console | None = None) -> None:
    """Findings with AUROC, interval, AUPRC and counts, then macro means and retrieval against chance."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    level = results.macro_interval.level if results.macro_interval else 0.95
    title = f"Zero-shot: {results.task}, {results.studies} studies of {results.patients} patients"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))  # narrow: names and intervals whole on 80 columns
    for heading in ("finding", "AUROC", f"{level:.0%} interval", "AUPRC", "synonyms", "pos", "neg", "unk."):
        first = heading == "finding"  # a name cut short could be any of three findings
        wide = 11 if "interval" in heading else None
        table.add_column(heading, justify="left" if first else "right", no_wrap=first, min_width=wide)
    for name, r in results.per_finding.items():
        interval = r.reason or (_span(r.interval) + (" (too few cases)" if r.too_few else ""))
        counts = (str(r.n_pos), str(r.n_neg), str(r.n_unknown))
        table.add_row(name, _value(r.auroc), interval, _value(r.auprc), _value(r.synonym_auroc), *counts)
    table.add_section()
    table.add_row("macro", _value(results.macro), _span(results.macro_interval), _value(results.macro_auprc),
                  _value(results.synonym_macro), style="bold")  # fmt: skip
    console.print(table)
    if results.excluded:
        left_out = "; ".join(f"{name} ({reason})" for name, reason in results.excluded.items())
        console.print(f"Not in the macro mean: {left_out}.", highlight=False)
    if results.retrieval:
        table = Table(title="Retrieval (identical reports count as hits)")
        for heading in ("direction", "pool", "R@k", "value", "chance", "× chance"):
            table.add_column(heading, justify="left" if heading == "direction" else "right")
        for recall in results.retrieval:
            ratio = f"{recall.value / recall.chance:.1f}" if recall.value is not None and recall.chance else "–"
            value = recall.reason or _value(recall.value)
            name = recall.direction.replace("_", " ")
            table.add_row(name, str(recall.pool), f"R@{recall.k}", value, _value(recall.chance), ratio)
        console.print(table)


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _span(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return "–"
    return f"{interval.low:.3f}–{interval.high:.3f}"
