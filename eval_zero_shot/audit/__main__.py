"""Audit a model's zero-shot scores: what training saw of the test set, and what is left of the scores under controls.

    python -m eval_zero_shot.audit --model MODEL --train SHARDS [--train-split train] --data SHARDS --split test
        --task TASK [--out DIR]

The verdict is in words; pairs.csv lists, by hashed key, what should be looked at. docs/audit.md says what each check
can and cannot see.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval_zero_shot.inputs import add_inputs, open_inputs, run_command

if TYPE_CHECKING:
    from eval_zero_shot.audit.protocol import Audit

COLOURS = {"fail": "bold red", "warn": "yellow", "not checked": "dim", "ok": "green"}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, 1 with the reason on stderr, or 2 where a check failed under --strict."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_inputs(parser)
    add = parser.add_argument
    add(
        "--train",
        nargs="+",
        default=[],
        metavar="DIR",
        help="the shard sets it was trained on (none: leakage is not checked)",
    )
    add("--train-split", default="train", metavar="NAME", help="of these sets (default: train)")
    add("--max-train", type=int, metavar="N", help="compare with a fixed choice of N studies of each training set")
    add("--task", required=True, metavar="TASK", help="packaged task or YAML file of prompts")
    add("--out", type=Path, metavar="DIR", help="folder for results.json, scores.parquet and pairs.csv")
    add("--resamples", type=int, default=1000, metavar="N", help="patient bootstrap (default: 1000)")
    add("--seed", type=int, default=0, help="of resamples, shuffles and folds (default: 0)")
    add("--strict", action="store_true", help="exit with 2 where a check fails")
    failed: list[str] = []

    def do(args: argparse.Namespace) -> None:
        from data_shards.opening import open_studies
        from eval_zero_shot.audit.pairs import write_pairs
        from eval_zero_shot.audit.protocol import score_audit, training_set
        from eval_zero_shot.outcome import write_results
        from eval_zero_shot.tasks import load_task

        task = load_task(args.task)
        training = [
            training_set(open_studies(where, args), args.train_split, args.max_train, args.seed) for where in args.train
        ]
        inputs = open_inputs(args)
        rows = inputs.rows(args.split, args.max_studies)
        audit = score_audit(inputs, rows, task, training, split=args.split, resamples=args.resamples, seed=args.seed)
        _print(audit)
        if args.out is not None:
            write_results(args.out, [audit.outcome])
            write_pairs(args.out, audit.pairs)
            print(f"wrote {args.out}: results.json, scores.parquet and pairs.csv")
        if args.strict:
            failed.extend(check.name for check in audit.checks if check.severity == "fail")

    code = run_command(parser, argv, do)
    return 2 if failed and code == 0 else code


def _print(audit: Audit) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from eval_zero_shot.audit.verdict import ordered

    console = Console()
    outcome = audit.outcome
    console.print(f"\n{escape(outcome.notes[0])}", style="bold", highlight=False)
    title = f"{escape(outcome.model)} on {escape(outcome.task)}: {outcome.studies} studies, {outcome.patients} patients"
    table = Table("", "check", "what was found", title=title, box=SIMPLE_HEAD)
    for check in ordered(audit.checks):
        colour = COLOURS[check.severity]
        table.add_row(f"[{colour}]{check.severity}[/]", escape(check.name), escape(check.says))
    console.print(table, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
