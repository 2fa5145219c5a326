"""Per-study scores of finished runs, read back for statistics over several of them.

Shapes: N studies, L findings.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval_zero_shot.statistics import Run


@dataclass(frozen=True)
class Scores:
    """What a run's `results/scores.csv` holds: columns of `run` in the order of `findings`, rows in that of `keys`."""

    findings: tuple[str, ...]
    keys: tuple[str, ...]
    run: Run

    def finding(self, name: str) -> Run:
        """One finding alone."""
        j = self.findings.index(name)
        return Run(self.run.scores_NL[:, j : j + 1], self.run.labels_NL[:, j : j + 1], self.run.patients_N)


def read_scores(path: str | Path, prompts: str = "main") -> Scores:
    """Read a `scores.csv` (eval_zero_shot.results.scores_csv), the lines of one prompt set.

    Raises:
        ValueError: no line of these prompts, or a study that lacks a finding.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["prompts"] == prompts]
    if not rows:
        raise ValueError(f"{Path(path).name} has no scores of {prompts} prompts")
    keys, findings = (tuple(dict.fromkeys(row[name] for row in rows)) for name in ("key", "finding"))
    row_of, column_of = ({name: i for i, name in enumerate(names)} for names in (keys, findings))
    scores_NL, labels_NL = (np.full((len(keys), len(findings)), np.nan) for _ in range(2))
    patients = np.empty(len(keys), dtype=object)
    for row in rows:
        at = row_of[row["key"]], column_of[row["finding"]]
        scores_NL[at] = float(row["score"])
        labels_NL[at] = float(row["label"] or "nan")
        patients[at[0]] = row["patient"]
    if np.isnan(scores_NL).any():
        raise ValueError(f"{Path(path).name} lacks a score of some study: it was cut short")
    return Scores(findings, keys, Run.of(scores_NL, labels_NL, patients))
