"""What a protocol found for one model on one task: metrics with intervals, and the per-case scores they came from.

Every protocol (classification, retrieval, probe, vqa, ...) ends in an `Outcome`; comparison, suite, tables and pages
start from it and know nothing of how it was made. A folder of results is

    results.json     outcomes, in the form of results.schema.json
    scores.parquet   one row a case and class (or direction), columns COLUMNS

so that any metric can be computed again, and two models can be compared case by case.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval_zero_shot.errors import EvalError

if TYPE_CHECKING:
    import pandas as pd

    from eval_zero_shot.statistics import Interval

RESULTS_VERSION = 2
Protocol = Literal["classification", "retrieval", "probe", "head", "vqa", "interpolation", "audit"]
COLUMNS = ("protocol", "task", "model", "key", "patient", "variant", "of", "score", "label")
Value = int | float | str


@dataclass(frozen=True)
class Metric:
    """One number.

    name: snake_case ("auroc", "recall"). of: the class, finding, label or direction it is about ("" for the task as a
    whole). at: what else fixes it, by name ({"k": 5, "pool": 64}, {"prompts": "synonyms"}, {"threshold": "validation"},
    {"shots": 4}). value, low, high: None where there is none, and then `reason` says why. method: how low and high
    came about ("logit", "percentile", "partition"...). n: cases it was computed over.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    of: str = ""
    at: Mapping[str, Value] = field(default_factory=dict)
    n: int = 0
    level: float = 0.95
    method: str | None = None
    reason: str | None = None

    @classmethod
    def of_interval(
        cls, name: str, interval: Interval, *, of: str = "", at: Mapping[str, Value] | None = None, n: int = 0
    ) -> Metric:
        """A metric out of an interval of `eval_zero_shot.statistics`."""
        method = None if interval.low is None else interval.method
        return cls(
            name, interval.value, interval.low, interval.high, of, dict(at or {}), n, interval.level, method,
            interval.reason,
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One protocol, one task, one model.

    headline: the name of the metric (of == "", at == {}) that stands for the task in tables and comparisons.
    studies, scans, patients: how many were scored. Scans are more than studies where all scans of a study were read: as
    one case by their mean or together, or each as a case (provenance scan_choice: first, mean, every or together).
    classes, prompts: exactly what was asked. provenance: what must be equal before two outcomes may be compared
    (data_sha256, split, rows_sha256, task_sha256, geometry_sha256, view_sha256, precision, seed, versions).
    notes: sentences a reader must know. scores: per-case rows, columns of COLUMNS after the first three:
        key      study (hashed; of its second scan as a case of its own KEY.01) or item id
        patient  hashed
        variant  prompt set, or "shots=4,draw=2", or "pool=full"; "" for the main one, which the headline is about
        of       class, finding, label or direction
        score    what ranks or, for hits and answers, 1 or 0 (or the share of random tie orders that hit)
        label    1, 0, or nan for unknown; nan throughout for retrieval; 1 for the right option's row in vqa
    """

    protocol: Protocol
    task: str
    model: str
    model_sha256: str
    headline: str
    metrics: tuple[Metric, ...]
    studies: int
    scans: int
    patients: int
    classes: tuple[str, ...] = ()
    prompts: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scores: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    def metric(self, name: str, of: str = "", **at: Value) -> Metric | None:
        """The metric with this name, class and circumstances, or None."""
        return next((m for m in self.metrics if (m.name, m.of, dict(m.at)) == (name, of, at)), None)

    @property
    def main(self) -> Metric:
        """The headline metric. Raises EvalError where the outcome has none."""
        found = self.metric(self.headline)
        if found is None:
            raise EvalError(
                f"{self.protocol} of task {self.task} has no metric {self.headline!r}",
                why="tables and comparisons would have nothing to show",
                fix="write the results again with eval_zero_shot.run",
            )
        return found

    @property
    def counted(self) -> str:
        """How much was scored, in words."""
        scans = f"{self.scans:,} scans of " if self.scans != self.studies else ""
        return f"{scans}{self.studies:,} studies of {self.patients:,} patients"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores, as JSON holds it."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "scores"}
        plain["metrics"] = [{**asdict(replace(m, at={})), "at": dict(m.at)} for m in self.metrics]
        for name in ("prompts", "provenance"):
            plain[name] = dict(plain[name])
        return {**plain, "classes": list(self.classes), "notes": list(self.notes)}


def write_results(folder: str | Path, outcomes: Sequence[Outcome], about: Mapping[str, Any] | None = None) -> Path:
    """Write `results.json` and `scores.parquet` into `folder` (made if needed), each aside first, then renamed; the
    scores first, so that results never stand beside another run's scores for long. Returns the path of results.json.

    about: of the run as a whole (suite, command).
    """
    import pandas as pd

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = [
        outcome.scores.assign(protocol=outcome.protocol, task=outcome.task, model=outcome.model)
        for outcome in outcomes
        if outcome.scores is not None and len(outcome.scores)
    ]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    kinds: dict[str, Any] = {name: ("float64" if name in ("score", "label") else "str") for name in COLUMNS}
    _aside(folder / "scores.parquet", lambda path: table[list(COLUMNS)].astype(kinds).to_parquet(path, index=False))
    content = {
        "results_version": RESULTS_VERSION,
        "about": dict(about or {}),
        "outcomes": [outcome.to_dict() for outcome in outcomes],
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    _aside(folder / "results.json", lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
    return folder / "results.json"


def read_results(folder: str | Path) -> list[Outcome]:
    """Outcomes of a results folder, each with its scores. Raises EvalError where there is none that can be read."""
    folder = Path(folder)
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        version = content.get("results_version") if isinstance(content, dict) else None
    except (OSError, ValueError) as error:
        missing = "no" if isinstance(error, FileNotFoundError) else f"no readable ({type(error).__name__})"
        raise EvalError(
            f"there is {missing} results.json in '{folder.name}'"
            if folder.is_dir()
            else f"there is no folder '{folder.name}'",
            why="there is nothing to show or compare",
            fix="name the folder that a command of eval_zero_shot wrote with --out",
        ) from None
    if version != RESULTS_VERSION:
        raise EvalError(
            f"results.json has version {version}, and this program reads version {RESULTS_VERSION}",
            why="its numbers could be taken for others",
            fix="score again with this version",
        )
    tables = _scores(folder)
    found = []
    for plain in content["outcomes"]:
        metrics = tuple(Metric(**m) for m in plain.pop("metrics"))
        name = (plain["protocol"], plain["task"], plain["model"])
        plain["classes"], plain["notes"] = tuple(plain["classes"]), tuple(plain["notes"])
        found.append(Outcome(metrics=metrics, scores=tables.get(name), **plain))
    return found


def _scores(folder: Path) -> dict[tuple[str, str, str], pd.DataFrame]:
    import pandas as pd

    try:
        table = pd.read_parquet(folder / "scores.parquet")
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise EvalError(
            f"no readable scores.parquet beside results.json ({type(error).__name__})",
            why="nothing could be recomputed or compared",
            fix="copy the whole folder that was written with --out",
        ) from None
    return {
        (str(p), str(t), str(m)): part.drop(columns=["protocol", "task", "model"]).reset_index(drop=True)
        for (p, t, m), part in table.groupby(["protocol", "task", "model"], sort=False)
    }


def _aside(path: Path, write: Any) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
