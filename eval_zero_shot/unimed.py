"""UniMed-CLIP's 21 sets in six modality groups: a suite that asks them, and the averages of its results, grouping and
weights printed with them.

    python -m eval_zero_shot.unimed --suite shards > unimed.yaml      # shards/TASK for each of them
    python -m eval_zero_shot.run --suite unimed.yaml --models ... --out results
    python -m eval_zero_shot.unimed results

One metric throughout, balanced accuracy; of a binary finding by the sign of the difference between its two sides, which
is the larger cosine that UniMed-CLIP's own code takes (which metric enters its average is stated nowhere).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval_zero_shot.catalogue import unimed_averages, unimed_groups, unimed_weights
from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Outcome, read_results

METRIC = "balanced_accuracy"
WEIGHTED = {
    "sets": "every set alike, as UniMed-CLIP's code lists them",
    "printed": "the only whole numbers with sum 21 that give the averages UniMed-CLIP prints",
    "groups": "every modality alike",
}


def suite_of(root: str) -> str:
    """A suite (eval_zero_shot.suite_file) of the 21 tasks, each on the shards at ROOT/TASK."""
    lines = ["name: unimed", "about: UniMed-CLIP's 21 sets. A set that you have not built is a line to delete."]
    lines.append("entries:")
    for group, names in unimed_groups().items():
        lines.append(f"  # {group}")
        lines += [f"  - {{protocol: classification, task: {n}, data: {root.rstrip('/')}/{n}}}" for n in names]
    return "\n".join(lines)


def scores_of(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Model -> task -> balanced accuracy, of the 21 tasks that were scored."""
    wanted = {name for names in unimed_groups().values() for name in names}
    found: dict[str, dict[str, float]] = {}
    for o in outcomes:
        if o.protocol == "classification" and o.task in wanted:
            metric = o.metric(METRIC) if len(o.classes) > 1 else o.metric(METRIC, o.classes[0], threshold="sign")
            if metric is not None and metric.value is not None:
                found.setdefault(o.model, {})[o.task] = metric.value
    return found


def report(score_of: Mapping[str, Mapping[str, float]]) -> str:
    """Groups with their sets and the mean of those that were scored, then the averages, a column a model.

    Averages are given where all 21 sets were scored. Raises EvalError where none was.
    """
    if not score_of:
        raise EvalError(
            "no result of UniMed-CLIP's 21 sets",
            why="there is nothing to average",
            fix="python -m eval_zero_shot.unimed --suite shards > unimed.yaml, and run it",
        )
    lines, models = [f"{METRIC}, mean of the sets of a group; columns: {', '.join(score_of)}"], list(score_of.values())
    for group, names in unimed_groups().items():
        cells = []
        for scores in models:
            there = [scores[name] for name in names if name in scores]
            partly = f" ({len(there)} of {len(names)})" if 0 < len(there) < len(names) else ""
            cells.append(f"{100 * sum(there) / len(there):.2f}{partly}" if there else "–")
        lines.append(f"{group:<11} {'  '.join(cells)}   {', '.join(names)}")
    for weighting, weights in unimed_weights().items():
        cells = []
        for scores in models:
            try:
                cells.append(f"{100 * unimed_averages(scores)[weighting]:.2f}")
            except EvalError:
                cells.append("–")
        told = ", ".join(f"{group} {weight}" for group, weight in weights.items())
        lines.append(f"average     {'  '.join(cells)}   weights {told}: {WEIGHTED[weighting]}")
    if any(len(scores) < sum(map(len, unimed_groups().values())) for scores in models):
        lines.append("– where a set has no score: an average over fewer sets is another number under the same name")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 after saying what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.unimed", description="UniMed-CLIP's 21 sets in six groups: suite and averages."
    )
    parser.add_argument("results", nargs="?", type=Path, help="folder that eval_zero_shot.run wrote with --out")
    parser.add_argument("--suite", metavar="ROOT", help="print a suite of the 21 tasks on shards ROOT/TASK")
    args = parser.parse_args(argv)
    if (args.results is None) == (args.suite is None):
        parser.error("name a results folder, or --suite ROOT")
    try:
        print(suite_of(args.suite) if args.suite else report(scores_of(read_results(args.results))))
    except EvalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
