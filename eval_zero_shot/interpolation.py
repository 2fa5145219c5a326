"""Weight interpolation between a base release and one fine-tuned from it (WiSE-FT, arXiv 2109.01903): the sweep.

theta(a) = (1 - a) base + a tuned. Every a is scored on a validation split and on the split that is shown; a is chosen
on validation alone, and base, merged and tuned are then scored with intervals. The command (eval_zero_shot.interpolate)
and a suite's entry both end in `merge`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.paired import cases_of, paired_difference
from eval_zero_shot.retrieval import Pool
from eval_zero_shot.tasks import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from encoders.interpolate import Pair
    from eval_zero_shot.embedding import StudyFeatures
    from eval_zero_shot.inputs import Inputs

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
RETRIEVAL_POOLS: tuple[Pool, ...] = (64, "full")


@dataclass(frozen=True)
class Point:
    """One a of the sweep: the headline of every task on both splits."""

    alpha: float
    validation: Mapping[str, float]
    test: Mapping[str, float]

    @property
    def mean(self) -> float:
        """On validation, over the tasks: what a is chosen by."""
        return sum(self.validation.values()) / len(self.validation)


@dataclass(frozen=True)
class Sweep:
    """All points, the a chosen on validation, and the test results of base, merged and tuned by task."""

    points: tuple[Point, ...]
    chosen: float
    results: Mapping[str, tuple[Outcome, Outcome, Outcome]]

    def differences(self, task: str, resamples: int, seed: int) -> tuple[Metric, Metric, Metric]:
        """(merged - base, merged - tuned, tuned - base) of a task's headline on test, paired by patient. The last one,
        where it is below 0, is what tuning forgot."""
        base, merged, tuned = self.results[task]
        found = []
        for one, other, same in (
            (merged, base, self.chosen == 0), (merged, tuned, self.chosen == 1), (tuned, base, False),
        ):  # fmt: skip
            difference, _ = paired_difference(
                cases_of(one), cases_of(other), resamples=resamples, seed=seed, method="percentile"
            )
            reason = "the same weights" if same else difference.reason
            low, high = (None, None) if reason else (difference.low, difference.high)
            found.append(
                Metric(
                    f"{merged.headline}_difference", difference.value, low, high, n=difference.cases,
                    method=None if reason else "percentile", reason=reason,
                )
            )  # fmt: skip
        return found[0], found[1], found[2]


@dataclass(frozen=True)
class Merged:
    """A sweep and the release that was written of it. sha256: of its release.json, as those of its parents.

    rows: the studies of each split. resamples, seed: of the intervals.
    """

    sweep: Sweep
    release: Path
    sha256: str
    base_sha256: str
    tuned_sha256: str
    rows: Mapping[str, NDArray]
    validation: str
    test: str
    resamples: int
    seed: int


def choose(points: Sequence[Point]) -> float:
    """a with the highest mean on validation; of equal ones (to 1e-12) the smallest, which is nearest to the base."""
    best = max(point.mean for point in points)
    return min(point.alpha for point in points if point.mean >= best - 1e-12)


class Memory:
    """Features of this run alone, in memory: several tasks and the last scoring share them (a `FeatureCache` that keeps
    nothing). Small beside the model: a vector a study, split and point."""

    def __init__(self) -> None:
        self.kept: dict[str, StudyFeatures] = {}

    def get_or_make(self, identity: dict[str, Any], make: Callable[[], StudyFeatures]) -> StudyFeatures:
        name = json.dumps(identity, sort_keys=True)
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


class Scorer:
    """Headlines of interpolated models on splits of a shard set; the model of `inputs` gets their weights one after
    another."""

    def __init__(self, pair: Pair, inputs: Inputs, rows: Mapping[str, NDArray], seed: int) -> None:
        self.pair, self.inputs, self.rows, self.seed = pair, inputs, rows, seed
        self.cache: Any = inputs.cache or Memory()  # `evaluate` asks no more of it than get_or_make

    def identity(self, alpha: float) -> str:
        """The parent's own at the ends, so that features are shared with other commands."""
        ends = {0.0: self.pair.base_sha256, 1.0: self.pair.tuned_sha256}
        mixed = f"{self.pair.base_sha256} {self.pair.tuned_sha256} {alpha!r}"
        return ends.get(alpha) or hashlib.sha256(mixed.encode()).hexdigest()

    def set(self, alpha: float) -> None:
        self.pair.set(self.inputs.loaded.model.clip, alpha)

    def results(self, alpha: float, split: str, task: Task | None, resamples: int = 0) -> Outcome:
        """Of the weights that were set last, which must be those of `alpha`. No task: retrieval, which needs none."""
        from eval_zero_shot.classification import score_classification
        from eval_zero_shot.retrieval.protocol import score_retrieval

        loaded = replace(self.inputs.loaded, sha256=self.identity(alpha))
        inputs = replace(self.inputs, name="point", loaded=loaded, cache=self.cache)
        asked: dict[str, Any] = {"split": split, "resamples": resamples, "seed": self.seed}
        if task is None:
            return score_retrieval(inputs, self.rows[split], pools=RETRIEVAL_POOLS, **asked)
        return score_classification(inputs, self.rows[split], task, **asked)

    def headline(self, alpha: float, split: str, task: Task | None) -> float:
        """Raises EvalError where the split has none."""
        main = self.results(alpha, split, task).main
        value = main.value
        if value is None:
            named = "retrieval" if task is None else f"task {task.name}"
            raise EvalError(
                f"{named} has no score on split '{split}': {main.reason or 'no finding has both classes there'}",
                why="a cannot be chosen, or the choice cannot be shown",
                fix="name another split (--validation-split, --split) or task",
            )
        return value


def require_choice(tasks: Sequence[Task], alphas: Sequence[float], validation: str, test: str) -> None:
    """Raise EvalError where a could not be chosen fairly, or two tasks would be one row."""
    if validation == test:
        raise EvalError(
            f"--validation-split and --split are both '{test}'",
            why="a chosen on the test studies would be scored on them",
            fix="name two splits",
        )
    if not alphas or any(not 0 <= alpha <= 1 for alpha in alphas):
        raise EvalError("--alphas are not from 0 to 1", why="that is no interpolation", fix="for example 0 0.5 1")
    if len({task.name for task in tasks}) < len(tasks):
        raise EvalError("two tasks have one name", why="one would stand for both", fix="change `name:` in a task file")


def sweep(
    scorer: Scorer, tasks: Sequence[Task], alphas: Sequence[float], validation: str, test: str, resamples: int = 1000
) -> Sweep:
    """Score every a on both splits, choose one on validation, and score base, merged and tuned with intervals on test.

    Raises EvalError where a task has no score on a split.
    """
    from data_shards.progress import track

    every = sorted({0.0, 1.0, *map(float, alphas)})
    points = []
    for alpha in track(every, len(every), "sweep", "points"):
        scorer.set(alpha)
        found = [{t.name: scorer.headline(alpha, split, t) for t in tasks} for split in (validation, test)]
        points.append(Point(alpha, *found))
    chosen = choose(points)
    shown: dict[float, dict[str, Outcome]] = {}
    for alpha in {0.0, chosen, 1.0}:
        scorer.set(alpha)
        shown[alpha] = {task.name: scorer.results(alpha, test, task, resamples) for task in tasks}
    results = {t.name: (shown[0.0][t.name], shown[chosen][t.name], shown[1.0][t.name]) for t in tasks}
    return Sweep(tuple(points), chosen, results)


def merge(
    pair: Pair, inputs: Inputs, rows: Mapping[str, NDArray], tasks: Sequence[Task], release: Path, *,
    alphas: Sequence[float] = ALPHAS, validation: str = "val", test: str = "test", resamples: int = 1000,
    seed: int = 0, overwrite: bool = False,
) -> Merged:  # fmt: skip
    """Sweep between the releases of a pair, and write the model with the a that validation chose as `release`.

    inputs: of the tuned release; its model gets every point's weights and ends with its own again. rows: of the two
    splits. overwrite: an earlier release may be replaced.

    Raises:
        EvalError: one split for both, alphas outside 0 ... 1, two tasks of one name, no score on a split.
        ReleaseError: `release` exists, or cannot be written.
    """
    from encoders.folder import inspect

    require_choice(tasks, alphas, validation, test)
    scorer = Scorer(pair, inputs, rows, seed)
    try:
        found = sweep(scorer, tasks, alphas, validation, test, resamples)
    finally:
        scorer.set(1.0)
    sha256 = inspect(pair.write(release, found.chosen, overwrite), verify=False).sha256
    return Merged(found, release, sha256, pair.base_sha256, pair.tuned_sha256, rows, validation, test, resamples, seed)
