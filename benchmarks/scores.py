"""Per-study scores of finished runs, read back for statistics over several of them.

Shapes: N studies, L findings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval_zero_shot.outcome import Outcome, Protocol, read_results
from eval_zero_shot.statistics import Interval, Run


@dataclass(frozen=True)
class Scores:
    """What a classification was computed from: columns of `run` in the order of `findings`, rows in that of `keys`."""

    findings: tuple[str, ...]
    keys: tuple[str, ...]
    run: Run

    def finding(self, name: str) -> Run:
        """One finding alone."""
        j = self.findings.index(name)
        return Run(self.run.scores_NL[:, j : j + 1], self.run.labels_NL[:, j : j + 1], self.run.patients_N)


def outcome_of(folder: str | Path, protocol: Protocol = "classification") -> Outcome:
    """The one outcome of a protocol in a run's `results`. Raises ValueError where there is none, or more than one."""
    found = [o for o in read_results(folder) if o.protocol == protocol]
    if len(found) != 1:
        raise ValueError(f"the results hold {len(found)} outcomes of {protocol}, not one")
    return found[0]


def read_scores(outcome: Outcome, variant: str = "") -> Scores:
    """Scores of one prompt set ("": the main one).

    Raises:
        ValueError: no score of these prompts, or a study that lacks a finding.
    """
    table = outcome.scores
    rows = None if table is None else table[table["variant"] == variant]
    if rows is None or not len(rows):
        raise ValueError(f"there are no scores of {variant or 'the main'} prompts")
    keys = list(dict.fromkeys(rows["key"]))
    wide = rows.pivot(index="key", columns="of", values=["score", "label"]).reindex(keys)
    scores_NL, labels_NL = (wide[name][list(outcome.classes)].to_numpy(np.float64) for name in ("score", "label"))
    if np.isnan(scores_NL).any():
        raise ValueError("a score of some study is missing: the file was cut short")
    patients = rows.drop_duplicates("key").set_index("key")["patient"].reindex(keys)
    return Scores(outcome.classes, tuple(keys), Run.of(scores_NL, labels_NL, patients.tolist()))


def read_recall(outcome: Outcome) -> Scores | None:
    """Hits of a retrieval's headline, R@1 in pools of 64 with identical reports as hits: a column a direction. A study
    that asks nothing in a direction is unknown there. For `weighted_mean`. None where there were fewer studies than a
    pool holds."""
    if outcome.headline != "recall_at_1_in_64" or outcome.scores is None:
        return None
    rows = outcome.scores[outcome.scores["variant"] == ""]
    wide = rows.pivot(index="key", columns="of", values="score")
    hits_NL = wide.to_numpy(np.float64)
    patients = rows.drop_duplicates("key").set_index("key")["patient"].reindex(wide.index)
    run = Run.of(np.nan_to_num(hits_NL), np.where(np.isnan(hits_NL), np.nan, 1.0), patients.tolist())
    return Scores(tuple(wide.columns), tuple(wide.index), run)


def told(found: Interval, sign: str = "") -> str:
    """An interval in a table's cell; sign: "+" for differences."""
    value = "–" if found.value is None else f"{found.value:{sign}.3f}"
    return value if found.low is None else f"{value} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"
