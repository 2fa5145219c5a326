"""The phantom's ceiling: the recipe's own image encoder, told the labels instead of reading reports.

    python -m benchmarks.phantom_ceiling [--config ct3d.yaml] [--out DIR] [--beside RUN] [--key.sub VALUE ...]

Same studies in the same order through the same views; same steps, batch, optimiser, schedule, precision and choice of
the best weights on the selection split. Only the loss differs: a linear head on the study embedding and binary
cross-entropy on the labels that the reports state (unknown ones masked). Zero-shot scores should come within 0.03.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config import dump, load_recipe, split_argv
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.supervised import Supervised


def report(ceiling: Supervised, selected: float, beside: Path | None) -> dict[str, Any]:
    """AUROC per finding and macro on the test split, with intervals over patients; beside it, a run's zero-shot scores.

    Raises:
        ConfigError: that run was scored on other studies.
    """
    from dataclasses import asdict

    from benchmarks.scores import outcome_of, read_scores
    from eval_zero_shot.statistics import auroc_intervals, macro_difference

    keys, run = ceiling.score(ceiling.data.test_rows)
    each, macro = auroc_intervals(run)
    found: dict[str, Any] = {
        "macro": asdict(macro),
        "findings": {name: asdict(interval) for name, interval in zip(ceiling.findings, each, strict=True)},
        "selected": selected,
        "steps": ceiling.recipe.train.steps,
        "recipe": dump(ceiling.recipe),
    }
    if beside is not None:
        theirs = read_scores(outcome_of(beside / "results"))
        if (theirs.keys, theirs.findings) != (keys, ceiling.findings):
            raise ConfigError(
                f"--beside {beside.name}: it was scored on other studies or findings",
                why="the difference would not be paired by patient",
                fix="give a run of the same recipe",
            )
        found["zero_shot_minus_ceiling"] = asdict(macro_difference([theirs.run], [run]))
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown, as benchmarks/RESULTS.md holds it."""

    def line(name: str, interval: dict[str, Any]) -> str:
        value, low, high = (interval[key] for key in ("value", "low", "high"))
        if value is None:
            return f"| {name} | – ({interval['reason']}) |"
        return f"| {name} | {value:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})") + " |"

    lines = ["| finding | supervised AUROC |", "| --- | ---: |", line("**macro**", found["macro"])]
    lines += [line(name, interval) for name, interval in found["findings"].items()]
    if "zero_shot_minus_ceiling" in found:
        lines.append(line("zero-shot − ceiling", found["zero_shot_minus_ceiling"]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.phantom_ceiling", description=(__doc__ or "").splitlines()[0], allow_abbrev=False,
        epilog="Further --key.sub VALUE change the recipe.",
    )  # fmt: skip
    add = parser.add_argument
    add("--config", default="ct3d.yaml", metavar="RECIPE", help="default: ct3d.yaml")
    add(
        "--out",
        default="runs/phantom_ceiling",
        metavar="DIR",
        help="folder of ceiling.json (default: runs/phantom_ceiling)",
    )
    add("--beside", type=Path, metavar="RUN", help="finished run of the recipe: the paired difference to its scores")
    add("--smoke", action="store_true", help="two steps on a handful of studies: does everything work?")
    args, rest = parser.parse_known_args(argv)
    try:
        recipe = load_recipe(args.config, split_argv(rest).overrides, smoke=args.smoke)
        if recipe.evaluate.task is None:
            raise ConfigError("evaluate.task: null", why="its findings are what is learnt", fix="--evaluate.task NAME")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    from benchmarks.supervised import Supervised
    from data_shards.errors import DataError
    from eval_zero_shot.errors import EvalError
    from eval_zero_shot.tasks import load_task

    try:
        ceiling = Supervised(recipe, load_task(recipe.evaluate.task))
        found = report(ceiling, ceiling.train(), args.beside)
    except (ConfigError, DataError, EvalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(found))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    aside = out / f".ceiling.{os.getpid()}.tmp"
    aside.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, out / "ceiling.json")
    print(f"wrote {out / 'ceiling.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
