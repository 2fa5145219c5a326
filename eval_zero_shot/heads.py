"""Scores of a released head of labels: what it was trained on, or converted with, against the labels of shards.

    python -m eval_zero_shot.heads --model RELEASE --data SHARDS [--head labels] [--split test] [--out DIR]

docs/heads.md says what each number is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import add_inputs, open_inputs, run_command

if TYPE_CHECKING:
    from eval_zero_shot.outcome import Metric, Outcome

MOST = 40  # labels that the table shows; of more, the highest and lowest TEN
TEN = 10

EPILOG = """example: the head of a run with objective labels, on the labels of the test split
  python -m eval_zero_shot.heads --model runs/mine/release --data shards/mine --out scores/head
example: Merlin's 1,692 phenotypes; the head has no names, so a file says which label of the shards each output is of
  python -m eval_zero_shot.heads --model releases/merlin --data shards/mine --head phenotypes --names phecodes.txt

A label counts where it is known to be present in --min-positives studies of the split and absent in as many; the others
have no numbers and are told, as are labels of the head that the shards lack. Unknown labels are left out.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    from eval_zero_shot.cases import add_scans
    from eval_zero_shot.head_scoring import MIN_POSITIVES

    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.heads",
        description="AUROC and average precision of a released head of labels (of objective labels, or converted): of "
        "each label, and their means.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_inputs(parser)
    add_scans(parser)
    add = parser.add_argument
    add("--head", default="labels", metavar="NAME", help="of the release's heads.json (default: labels)")
    add("--names", metavar="FILE", help="labels of a head without names, one a line in the order of its outputs")
    add("--min-positives", type=int, default=MIN_POSITIVES, metavar="N",
        help=f"studies with a label, and without it, from which on it counts (default: {MIN_POSITIVES})")  # fmt: skip
    add("--resamples", type=int, default=1000, metavar="N", help="patient bootstrap (default: 1000; 0: no intervals)")
    add("--seed", type=int, default=0, help="of the resamples (default: 0)")
    add("--out", type=Path, metavar="DIR", help="folder for results.json, results.csv and scores.parquet")
    return run_command(parser, argv, _score)


def _score(args: argparse.Namespace) -> None:
    from data_shards.names import read_names
    from eval_zero_shot.head_scoring import head_of, score_head
    from eval_zero_shot.outcome import write_results
    from eval_zero_shot.spreadsheet import write_csv

    if args.min_positives < 1:
        raise EvalError(f"--min-positives {args.min_positives}", why="no AUROC without a positive", fix="1 or more")
    names = read_names(args.names) if args.names else None
    inputs = open_inputs(args, texts=False)
    head_of(inputs.loaded, args.head, names)  # said before anything is encoded
    outcome = score_head(
        inputs, inputs.rows(args.split, args.max_studies), args.head, names, split=args.split,
        min_positives=args.min_positives, resamples=args.resamples, seed=args.seed,
    )  # fmt: skip
    print_head(outcome)
    if args.out:
        wrote = write_results(args.out, [outcome], {"command": "heads"})
        write_csv(args.out / "results.csv", [outcome])
        print(f"wrote {wrote}, results.csv and scores.parquet")


def print_head(outcome: Outcome) -> None:
    """A table of the labels, of many the highest and lowest, and of their means; then the notes."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"head {outcome.task}: {outcome.model}", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("label", overflow="fold")
    for heading in ("with it", "AUROC", "95 % interval", "AUPRC"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = list(outcome.classes)
    many = len(names) > MOST
    if many:
        names.sort(key=lambda name: -(_value(outcome, "auroc", name) or 0.0))
    for i, of in enumerate([*names[:TEN], *names[-TEN:]] if many else names):
        if many and i == TEN:
            table.add_row(f"... {len(names) - 2 * TEN} more", end_section=True)
        present = _value(outcome, "positives", of)
        table.add_row(of, "" if present is None else f"{present:.0f}", *_cells(outcome, of))
    table.add_section()
    table.add_row("mean", "", *_cells(outcome, ""), style="bold")
    console.print(table)
    console.print(f"{outcome.counted}.", highlight=False)
    for note in outcome.notes:
        console.print(note, highlight=False, markup=False)


def _value(outcome: Outcome, name: str, of: str) -> float | None:
    metric = outcome.metric(name, of)
    return None if metric is None else metric.value


def _cells(outcome: Outcome, of: str) -> tuple[str, ...]:
    auroc, auprc = outcome.metric("auroc", of), outcome.metric("auprc", of)
    return _number(auroc), _span(auroc), _number(auprc)


def _number(metric: Metric | None) -> str:
    return "–" if metric is None or metric.value is None else f"{metric.value:.3f}"


def _span(metric: Metric | None) -> str:
    if metric is None or metric.low is None:
        return "" if metric is None else (metric.reason or "")
    return f"{metric.low:.3f}–{metric.high:.3f}"


if __name__ == "__main__":
    sys.exit(main())
