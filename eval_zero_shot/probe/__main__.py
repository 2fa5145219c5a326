"""Probes of a model's frozen features.

    python -m eval_zero_shot.probe --model RELEASE_DIR --data SHARDS [--labels A,B | --labels organ=liver|spleen|lung]
        [--features trunk] [--task TASK] [--fractions 0.01 0.1] [--shots 1 2 4 8 16] [--draws FILE] [--knn 20]
        [--out DIR]

What each probe is: docs/probe.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval_zero_shot.cases import add_scans
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import add_features, add_inputs, open_inputs, run_command
from eval_zero_shot.outcome import Metric, Outcome, write_results
from eval_zero_shot.probe.draws import add_draws
from eval_zero_shot.probe.material import draws_of, require_one, rows_of
from eval_zero_shot.probe.protocol import score_probe
from eval_zero_shot.probe.split import question
from eval_zero_shot.tasks import load_task


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.probe", description="Logistic regression and neighbours on frozen features."
    )
    add_inputs(parser)
    add_scans(parser)
    add_features(parser)
    add_draws(parser)
    add = parser.add_argument
    add("--task", metavar="TASK", help="prompts of the labels: also a probe that starts at the zero-shot classifier")
    add("--draws", type=Path, metavar="FILE", help="of eval_zero_shot.probe.draws: shots and fractions to learn from")
    add("--shot-strength", choices=("fixed", "validation"), default="fixed",
        help="C of few shots: 1, or chosen on min(k, 4) shots of the validation split (default: fixed)")  # fmt: skip
    add("--finer", action="store_true", help="C by CLIP's search of 96 steps instead of the 13 decades 1e-6 ... 1e6")
    add("--knn", type=int, default=20, metavar="K", help="neighbours (default: 20; 0: none)")
    add("--resamples", type=int, default=1000, metavar="N", help="patient bootstrap (default: 1000)")
    add("--out", type=Path, metavar="DIR", help="folder for results.json and scores.parquet")
    return run_command(parser, argv, _probe)


def _probe(args: argparse.Namespace) -> None:
    require_one(args.draws, args.shots, args.fractions)  # said before the model is loaded
    if args.knn < 0 or args.resamples < 0:
        raise EvalError("--knn or --resamples below 0", why="nothing can be drawn", fix="give 0 or more")
    task = load_task(args.task) if args.task else None
    inputs = open_inputs(args, texts=task is not None)
    asked = question(args.labels, inputs.shards.label_names, task)
    rows = rows_of(inputs, args.train_split, args.validation_split, args.split, args.max_studies)
    draws = draws_of(inputs, rows, asked, args.draws, args.shots, args.fractions, args.draws_count, args.draws_seed)
    outcome = score_probe(
        inputs, rows, asked, split=args.split, task=task, draws=draws, shot_strength=args.shot_strength, knn=args.knn,
        finer=args.finer, resamples=args.resamples, progress=True,
    )  # fmt: skip
    _table(outcome)
    if args.out:
        print(f"wrote {write_results(args.out, [outcome])} and scores.parquet")


def _table(outcome: Outcome) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = ("auroc", "auprc", "recall" if outcome.headline == "balanced_accuracy" else "balanced_accuracy")
    table = Table("label", title=f"Probe of {outcome.task}, all training labels", box=SIMPLE_HEAD)
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    for of in (*outcome.classes, ""):
        cells = [_cell(outcome.metric(name, of)) for name in shown]
        table.add_row(of or "macro", *cells, style=None if of else "bold")
    other = Table("probe", title=outcome.headline.replace("_", " "), box=SIMPLE_HEAD)
    for heading in ("value", "train studies"):
        other.add_column(heading, justify="right")
    for metric in outcome.metrics:
        if metric.name == outcome.headline and not metric.of:
            size = next((m for m in outcome.metrics if m.name == "train_studies" and m.at == metric.at), None)
            said = ", ".join(f"{k} {v}" for k, v in metric.at.items()) or "all training labels"
            other.add_row(said, _cell(metric), "" if size is None else f"{size.value:.0f}")
    console = Console()
    console.print(table, other)
    said_of = "( ) interval over test patients; [ ] lowest and highest of the draws of training studies"
    console.print(said_of, style="dim", highlight=False, markup=False)
    for note in outcome.notes:
        console.print(note, highlight=False, soft_wrap=True)


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return ""
    if metric.value is None:
        return metric.reason or "–"
    if metric.low is None:
        return f"{metric.value:.3f}"
    drawn = (metric.method or "").startswith("range of")  # of draws of training studies, no interval over patients
    opening, closing = "[]" if drawn else "()"
    return f"{metric.value:.3f} {opening}{metric.low:.3f}–{metric.high:.3f}{closing}"


if __name__ == "__main__":
    sys.exit(main())
