"""Is model A better than model B? The same resampled patients for both, task by task.

    python -m eval_zero_shot.compare RESULTS_A RESULTS_B [--out DIR]

A and B are folders that a command of this package wrote with --out. Per task: the difference with its interval, win,
tie or loss (an interval that excludes 0), and a p value adjusted over all tasks (Holm). Where a task has several prompt
sets that were also scored on a validation split, each model is shown with the default set, with the one it does best
with on validation, and with the lowest and highest over all sets (Jeong et al. 2024, arXiv 2411.04118).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import require_folder, run_command
from eval_zero_shot.outcome import Outcome, read_results
from eval_zero_shot.paired import Difference, Method, cases_of, holm, paired_difference, require_comparable

LEAST_PER_TASK = 100  # draws: p is 2 / (draws + 1) at least, and times the number of tasks
CHOSEN = "validation"  # the prompt set that a model does best with on the validation split
DEFAULT = "default"
WITHOUT = {"tie": "counted as a tie", "untold": "no mark"}  # what a comparison without an interval is


@dataclass(frozen=True)
class Comparison:
    """One task: `model` - `reference`.

    prompts: which prompt set each was shown with: "default", or "validation" (chosen for each model by itself).
    chosen: the names of the sets (model, reference). spread: lowest and highest value over all prompt sets, of each.
    """

    protocol: str
    task: str
    model: str
    reference: str
    prompts: str
    chosen: tuple[str, str]
    spread: tuple[tuple[float, float] | None, tuple[float, float] | None]
    difference: Difference
    p_holm: float | None = None

    @property
    def mark(self) -> str:
        return self.difference.mark

    def to_dict(self) -> dict[str, Any]:
        """Flat: what a page or a table shows."""
        found = asdict(self.difference)
        return {
            "protocol": self.protocol, "task": self.task, "model": self.model, "reference": self.reference,
            "prompts": self.prompts, "chosen": list(self.chosen), "spread": [s and list(s) for s in self.spread],
            "difference": found.pop("value"), "low": found.pop("low"), "high": found.pop("high"),
            "p": found.pop("p"), "p_holm": self.p_holm, "mark": self.mark, **found,
        }  # fmt: skip


def compare(
    ours: Sequence[Outcome],
    theirs: Sequence[Outcome],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "bca",
    tell: Callable[[str], None] | None = None,
) -> list[Comparison]:
    """Every task that both were scored on, default prompts first, then prompts chosen on validation where there are.

    p values are adjusted over the tasks of one kind of prompts. Raises EvalError where the two share no task, and where
    a shared task was not scored on the same cases; with `tell`, such tasks are told and left out instead.
    """
    if not 0 < level < 1 or seed < 0 or resamples < 1:
        raise EvalError(
            f"level {level}, seed {seed}, resamples {resamples}",
            why="no interval can be drawn",
            fix="a level between 0 and 1 such as 0.95, a seed of 0 or more",
        )
    reference: dict[tuple[str, str], Outcome] = {(o.protocol, o.task): o for o in theirs if o.protocol != "audit"}
    shared = [(o, reference[o.protocol, o.task]) for o in ours if (o.protocol, o.task) in reference]
    both = {(o.protocol, o.task) for o, _ in shared}
    only = sorted(
        f"{o.task} ({o.protocol})" for o in ours if o.protocol != "audit" and (o.protocol, o.task) not in both
    )
    if not shared and tell is None:
        raise EvalError(
            "the two results have no task in common",
            why="there is nothing to compare",
            fix="score both models on the same tasks (eval_zero_shot.run --suite)",
        )
    if only and tell is not None:
        tell(f"{', '.join(only)}: only one of the two has them")
    resamples = max(resamples, LEAST_PER_TASK * len(shared))  # else Holm's adjustment alone would keep p above 0.05
    found: list[Comparison] = []
    for a, b in shared:
        try:
            found += _of_task(a, b, {"resamples": resamples, "seed": seed, "level": level, "method": method})
        except EvalError as error:
            if tell is None:
                raise
            tell(str(error).splitlines()[0])
    for prompts in (DEFAULT, CHOSEN):
        at = [i for i, c in enumerate(found) if c.prompts == prompts]
        for i, p in zip(at, holm([found[i].difference.p for i in at]), strict=True):
            found[i] = replace(found[i], p_holm=p)
    return found


def _of_task(a: Outcome, b: Outcome, options: Mapping[str, Any]) -> list[Comparison]:
    require_comparable(a, b)
    found = []
    for prompts in (DEFAULT, CHOSEN):
        mine, other = _chosen(a, prompts), _chosen(b, prompts)
        if mine is None or other is None:
            continue
        difference, _ = paired_difference(cases_of(a, mine.variant), cases_of(b, other.variant), **options)
        names, spread = (mine.name, other.name), (_spread(a), _spread(b))
        found.append(Comparison(a.protocol, a.task, a.model, b.model, prompts, names, spread, difference))
    return found


class _Set(NamedTuple):
    """A prompt set: the variant of the scores, and its name."""

    variant: str
    name: str


def _chosen(outcome: Outcome, prompts: str) -> _Set | None:
    """The prompt set to show. None: nothing was scored on validation."""
    default = str(outcome.provenance.get("prompt_set", ""))
    if prompts == DEFAULT:
        return _Set("", default)
    scored = [
        (metric.value, str(metric.at["prompts"]))
        for metric in outcome.metrics
        if metric.name == outcome.headline and metric.of == "" and set(metric.at) == {"prompts", "validation"}
        and metric.value is not None
    ]  # fmt: skip
    if len(scored) < 2:
        return None
    best = max(value for value, _ in scored)
    names = [name for value, name in scored if value == best]  # the default, then the file's order, on a tie
    name = default if default in names else names[0]
    return _Set("" if name == default else name, name)


def _spread(outcome: Outcome) -> tuple[float, float] | None:
    """Lowest and highest headline over the prompt sets on the scored split."""
    values = [
        m.value
        for m in outcome.metrics
        if m.name == outcome.headline and m.of == "" and set(m.at) <= {"prompts"} and m.value is not None
    ]
    return (min(values), max(values)) if len(values) > 1 else None


def counts(found: Iterable[Comparison]) -> Counter[str]:
    """Wins, ties and losses."""
    return Counter(c.mark for c in found)


def print_comparisons(found: Sequence[Comparison]) -> None:
    """A table per kind of prompts, with wins, ties and losses below it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for prompts, title in ((DEFAULT, "default prompts"), (CHOSEN, "prompts chosen for each model on validation")):
        rows = [c for c in found if c.prompts == prompts]
        if not rows:
            continue
        first = rows[0]
        level = f"{first.difference.level:.0%} interval"
        table = Table(title=f"A: {first.model}, B: {first.reference}; {title}", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
        table.add_column("task", overflow="fold")
        for heading in ("A", "B", "A − B", level, "p (Holm)", ""):
            table.add_column(heading, justify="right", no_wrap=True)
        for c in rows:
            d = c.difference
            span = "–" if d.low is None else f"{d.low:+.3f} to {d.high:+.3f}"
            p = "–" if c.p_holm is None else f"{c.p_holm:.3f}"
            values = (f"{d.ours:.3f}", f"{d.theirs:.3f}", f"{d.value:+.3f}", span, p)
            task = c.task if c.protocol in c.task else f"{c.task} {c.protocol}"
            table.add_row(f"{task}, {d.statistic}", *values, c.mark)
        console.print(table)
        for c in rows:
            if c.difference.reason:
                console.print(f"{c.task}: no interval, {c.difference.reason}; {WITHOUT[c.mark]}.", highlight=False)
        told = counts(rows)
        said = f"{told['win']} won, {told['tie']} tied, {told['loss']} lost"
        said += f", {told['untold']} untold" if told["untold"] else ""
        console.print(f"A {said}.", highlight=False)
        for c in rows:
            if all(c.spread):
                ranges = [f"{low:.3f} to {high:.3f}" for low, high in c.spread if (low, high)]  # type: ignore[misc]
                sets = f"A said {c.chosen[0]}, B {c.chosen[1]}"
                console.print(f"{c.task}: {sets}; over all sets A {ranges[0]}, B {ranges[1]}", highlight=False)
    method, draws = found[0].difference.method, found[0].difference.resamples
    said = "the same for both models. Marks go by each task's own interval, p (Holm) by all tasks together."
    console.print(f"Intervals: {method}, {draws} draws of patients, {said}", highlight=False)


def forest_plot(found: Sequence[Comparison], path: Path) -> None:
    """Differences with their intervals, a row a task, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [c for c in found if c.prompts == DEFAULT][::-1]
    colours = {"win": "#1a7f4b", "tie": "#767676", "untold": "#767676", "loss": "#b3261e"}
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.34 * len(rows)))
    for y, c in enumerate(rows):
        d = c.difference
        if d.low is not None and d.high is not None:
            axes.hlines(y, d.low, d.high, color=colours[c.mark], lw=3, alpha=0.5)
        axes.plot(d.value, y, "o", color=colours[c.mark])
    axes.axvline(0, color="black", lw=1, ls=":")
    axes.set_yticks(range(len(rows)), [f"{c.task} ({c.difference.statistic})".replace("$", r"\$") for c in rows])
    axes.set_xlabel(f"{rows[0].model} − {rows[0].reference}, {rows[0].difference.level:.0%} intervals over patients")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(aside, dpi=150, bbox_inches="tight", format="png", metadata={"Software": None})
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
        plt.close(figure)


def write_comparisons(folder: Path, found: Sequence[Comparison]) -> None:
    """`comparison.json` and `comparison.png`, each aside first, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".comparison.{os.getpid()}.tmp"
    body = {"comparisons": [c.to_dict() for c in found], "marks": dict(counts(found))}
    aside.write_text(json.dumps(body, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, folder / "comparison.json")
    forest_plot(found, folder / "comparison.png")


def _of_one_model(folder: Path, model: str | None) -> list[Outcome]:
    outcomes = read_results(folder)
    models = sorted({o.model for o in outcomes})
    if model is None and len(models) == 1:
        return outcomes
    if model not in models:
        raise EvalError(
            f"the results hold {len(models)} models" + (f", none named {model!r}" if model else ""),
            why="it would be anybody's guess which one is meant",
            fix=f"name one: --model-a or --model-b, of {', '.join(models)}",
        )
    return [o for o in outcomes if o.model == model]


def _compare(args: argparse.Namespace) -> None:
    require_folder(args.out)
    if args.resamples < 1000:
        raise EvalError(
            f"--resamples {args.resamples}", why="the ends of a 95 % interval would be noise", fix="1000 or more"
        )
    ours, theirs = _of_one_model(args.a, args.model_a), _of_one_model(args.b, args.model_b)
    found = compare(ours, theirs, resamples=args.resamples, seed=args.seed, level=args.level, method=args.method)
    print_comparisons(found)
    if args.out:
        write_comparisons(args.out, found)
        print(f"wrote {args.out / 'comparison.json'} and comparison.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("a", type=Path, metavar="RESULTS_A", help="results folder of the first model")
    add("b", type=Path, metavar="RESULTS_B", help="results folder of the second; may be the same folder")
    add("--model-a", metavar="NAME", help="which model of RESULTS_A, where it holds several")
    add("--model-b", metavar="NAME", help="which model of RESULTS_B, where it holds several")
    add("--resamples", type=int, default=1000, metavar="N", help="draws of patients (default and least: 1000)")
    add("--method", choices=("bca", "percentile"), default="bca", help="of the interval (default: bca)")
    add("--level", type=float, default=0.95, metavar="P", help="of the interval (default: 0.95)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    add("--out", type=Path, metavar="DIR", help="folder for comparison.json and comparison.png")
    return run_command(parser, argv, _compare)


if __name__ == "__main__":
    sys.exit(main())
