"""Weight interpolation between a base release and one fine-tuned from it (WiSE-FT, arXiv 2109.01903).

    python -m eval_zero_shot.interpolate --base DIR --tuned DIR --data SHARDS --task TASK [TASK ...] --out OUT

theta(a) = (1 - a) base + a tuned, for every a of --alphas. a is chosen on the validation split alone (highest mean
headline over the tasks; the smaller a on a tie); base, tuned and merged are then shown on the test split with intervals
and paired differences. The other points of the test curve are in the plot and chose nothing. Written to OUT:
release/ (the merged model), results.json, scores.parquet, sweep.png.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.opening import add_tar_options, open_studies
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import Inputs, add_embedding, choose_rows, run_command
from eval_zero_shot.outcome import Metric, Outcome, write_results
from eval_zero_shot.paired import cases_of, paired_difference
from eval_zero_shot.tasks import Task, load_task

if TYPE_CHECKING:
    from encoders.interpolate import Pair
    from encoders.loading import Loaded
    from eval_zero_shot.embedding import StudyFeatures
    from eval_zero_shot.feature_cache import FeatureCache

POINT = "a point of the sweep"  # why it has no interval
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))


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

    def differences(self, task: str, resamples: int, seed: int) -> tuple[Metric, Metric]:
        """(merged - base, merged - tuned) of a task's headline on test, paired by patient."""
        base, merged, tuned = self.results[task]
        found = []
        for other, end in ((base, 0.0), (tuned, 1.0)):
            difference, _ = paired_difference(
                cases_of(merged), cases_of(other), resamples=resamples, seed=seed, method="percentile"
            )
            reason = "the same weights" if self.chosen == end else difference.reason
            low, high = (None, None) if reason else (difference.low, difference.high)
            found.append(
                Metric(
                    f"{merged.headline}_difference", difference.value, low, high, n=difference.cases,
                    method=None if reason else "percentile", reason=reason,
                )
            )  # fmt: skip
        return found[0], found[1]


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
    """Headlines of interpolated models on the splits of a shard set; `loaded` gets their weights one after another."""

    def __init__(
        self, pair: Pair, loaded: Loaded, shards: Any, rows: Mapping[str, Any], cache: FeatureCache | Memory, **how: Any
    ) -> None:
        self.pair, self.loaded, self.shards, self.rows = pair, loaded, shards, rows
        self.cache: Any = cache  # `evaluate` asks no more of it than get_or_make
        self.how = how

    def identity(self, alpha: float) -> str:
        """The parent's own at the ends, so that features are shared with other commands."""
        ends = {0.0: self.pair.base_sha256, 1.0: self.pair.tuned_sha256}
        mixed = f"{self.pair.base_sha256} {self.pair.tuned_sha256} {alpha!r}"
        return ends.get(alpha) or hashlib.sha256(mixed.encode()).hexdigest()

    def set(self, alpha: float) -> None:
        self.pair.set(self.loaded.model.clip, alpha)

    def results(self, alpha: float, split: str, task: Task, resamples: int = 0) -> Outcome:
        """Of the weights that were set last, which must be those of `alpha`."""
        from eval_zero_shot.classification import score_classification

        loaded = replace(self.loaded, sha256=self.identity(alpha))
        inputs = Inputs("point", loaded, self.shards, self.cache, self.how["batch_size"], self.how["precision"])
        return score_classification(
            inputs, self.rows[split], task, split=split, resamples=resamples, seed=self.how["seed"]
        )

    def headline(self, alpha: float, split: str, task: Task) -> float:
        """Raises EvalError where the split has none."""
        value = self.results(alpha, split, task).main.value
        if value is None:
            raise EvalError(
                f"task {task.name} has no score on split '{split}': no finding has both classes there",
                why="a cannot be chosen, or the choice cannot be shown",
                fix="name another split (--validation-split, --split) or task",
            )
        return value


def sweep(
    scorer: Scorer, tasks: Sequence[Task], alphas: Sequence[float], validation: str, test: str, resamples: int = 1000
) -> Sweep:
    """Score every a on both splits, choose one on validation, and score base, merged and tuned with intervals on test.

    Raises EvalError on alphas outside 0 ... 1 and where a task has no score on a split.
    """
    from data_shards.progress import track

    if not alphas or any(not 0 <= alpha <= 1 for alpha in alphas):
        raise EvalError("--alphas are not from 0 to 1", why="that is no interpolation", fix="for example 0 0.5 1")
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


def outcomes(
    found: Sweep, names: Sequence[str], shas: Sequence[str], validation: str, test: str, resamples: int, seed: int
) -> list[Outcome]:
    """An outcome a task and model (base, merged, tuned, in the order of `names` and `shas`). The merged one's also hold
    the sweep (at alpha, split) and its differences to both parents (of the parent)."""
    made = []
    for task, three in found.results.items():
        for place, (name, sha, outcome) in enumerate(zip(names, shas, three, strict=True)):
            more: list[Metric] = []
            if place == 1:
                more += [
                    Metric(
                        outcome.headline,
                        value,
                        at={"alpha": point.alpha, "split": split},
                        reason=POINT,
                    )
                    for point in found.points
                    for split, value in ((validation, point.validation[task]), (test, point.test[task]))
                ]
                ends = zip((names[0], names[2]), found.differences(task, resamples, seed), strict=True)
                more += [replace(metric, of=parent) for parent, metric in ends]
            note = (
                f"WiSE-FT between {names[0]} (a = 0) and {names[2]} (a = 1): a = {found.chosen:g}, chosen on split "
                f"'{validation}' by the mean over {len(found.results)} tasks; shown on '{test}'."
            )
            made.append(
                replace(
                    outcome, model=name, model_sha256=sha, metrics=(*outcome.metrics, *more),
                    provenance={**outcome.provenance, "validation_split": validation}, notes=(note, *outcome.notes),
                )
            )  # fmt: skip
    return made


def _names(args: argparse.Namespace) -> tuple[str, str, str]:
    """How tables call base, merged and tuned; told apart where their folders have one name."""
    from eval_zero_shot.release import model_name

    names = (model_name(args.base), args.out.resolve().name, model_name(args.tuned))
    if len(set(names)) == 3:
        return names
    return f"{names[0]} (base)", f"{names[1]} (merged)", f"{names[2]} (tuned)"


def _interpolate(args: argparse.Namespace) -> None:
    if args.validation_split == args.split:
        raise EvalError(
            f"--validation-split and --split are both '{args.split}'",
            why="a chosen on the test studies would be scored on them",
            fix="name two splits",
        )
    if (args.out / "release").exists() and not args.overwrite:
        raise EvalError(
            "OUT holds a release already",
            why="hours of scoring would end in a refusal",
            fix="another --out, or --overwrite",
        )
    tasks = [load_task(name) for name in args.task]
    if len({task.name for task in tasks}) < len(tasks):
        raise EvalError("two tasks have one name", why="one would stand for both", fix="change `name:` in a task file")
    shards = open_studies(args.data, args)
    rows = {}
    for split in (args.validation_split, args.split):
        if not shards.manifest["splits"].get(split):
            known = ", ".join(shards.manifest["splits"])
            raise EvalError(f"no study in split '{split}'", why="nothing can be scored", fix=f"name one of: {known}")
        rows[split] = choose_rows(shards.rows(split), args.max_studies, args.seed)
    from encoders.interpolate import Pair
    from eval_zero_shot.feature_cache import FeatureCache
    from eval_zero_shot.interpolate_show import plot_sweep, print_sweep
    from eval_zero_shot.release import load_dual

    pair = Pair(args.base, args.tuned)
    loaded = load_dual(args.tuned, args.device)
    cache = Memory() if args.no_cache else FeatureCache(args.cache)
    how = {"batch_size": args.batch_size, "precision": args.precision, "seed": args.seed}
    scorer = Scorer(pair, loaded, shards, rows, cache, **how)
    found = sweep(scorer, tasks, args.alphas, args.validation_split, args.split, args.resamples)
    args.out.mkdir(parents=True, exist_ok=True)
    release = pair.write(args.out / "release", found.chosen, args.overwrite)
    from encoders.folder import inspect

    shas = (pair.base_sha256, inspect(release).sha256, pair.tuned_sha256)
    made = outcomes(found, _names(args), shas, args.validation_split, args.split, args.resamples, args.seed)
    print_sweep(found, made, args.validation_split, args.split)
    about = {"command": "interpolate", "alpha": found.chosen, "taken_from_tuned": pair.from_tuned()}
    write_results(args.out, made, about)
    aside = args.out / f".sweep.{os.getpid()}.tmp"
    try:
        plot_sweep(found, made, args.validation_split, args.split, aside)
        os.replace(aside, args.out / "sweep.png")
    finally:
        aside.unlink(missing_ok=True)
    print(f"wrote {release}, results.json, scores.parquet and sweep.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.interpolate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", required=True, metavar="DIR", help="release that was tuned from")
    add("--tuned", required=True, metavar="DIR", help="release that was fine-tuned")
    add("--data", required=True, metavar="DIR", help="shard set (folder or URL) or published .tar files")
    add("--task", required=True, nargs="+", metavar="NAME", help="packaged tasks or YAML files of prompts")
    add("--validation-split", default="val", metavar="NAME", help="split that a is chosen on (default: val)")
    add("--split", default="test", metavar="NAME", help="split that is shown (default: test)")
    add(
        "--alphas",
        type=float,
        nargs="+",
        default=list(ALPHAS),
        metavar="A",
        help="default: 0 0.1 ... 1; 0 and 1 always",
    )
    add("--max-studies", type=int, metavar="N", help="score a fixed choice of N studies of each split")
    add("--resamples", type=int, default=1000, metavar="N", help="draws of patients (default: 1000)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    add("--out", required=True, type=Path, metavar="OUT", help="folder for release/, results and the plot")
    add("--overwrite", action="store_true", help="replace an earlier release in OUT")
    add_embedding(parser)
    add_tar_options(parser)
    return run_command(parser, argv, _interpolate)


if __name__ == "__main__":
    sys.exit(main())
