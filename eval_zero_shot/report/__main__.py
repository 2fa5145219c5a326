"""The report page of evaluations.

python -m eval_zero_shot.report --results DIR [DIR ...] [--model RELEASE --data SHARDS --task NAME] [--run RUN] --out report.html
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.opening import add_tar_options, open_studies
from eval_zero_shot.cases import EveryScan
from eval_zero_shot.errors import EvalError, unreadable
from eval_zero_shot.inputs import run_command

if TYPE_CHECKING:
    from eval_zero_shot.outcome import Outcome
    from eval_zero_shot.report.cases import Shown

NEEDED = ("protocol", "task", "model", "reference", "difference", "low", "high", "p_holm", "mark")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.report", description="One self-contained HTML page of evaluations."
    )
    add = parser.add_argument
    add("--results", type=Path, nargs="+", metavar="DIR", help="folders written with --out (default: RUN/results)")
    add("--comparison", type=Path, nargs="+", default=[], metavar="DIR", help="of eval_zero_shot.compare --out: marks")
    add("--run", type=Path, metavar="DIR", help="run folder: adds training curves; its release is the default --model")
    add("--model", nargs="+", metavar="MODEL", help="models that were scored, for the parts that show studies")
    add("--data", metavar="DIR", help="shard set that was scored")
    add("--task", nargs="+", metavar="NAME", help="classification tasks that were scored")
    add("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    add("--title", default=None, help="heading of the page")
    add("--no-cases", action="store_true", help="numbers only: no image, no sentence and no key of a study")
    add_tar_options(parser)
    return run_command(parser, argv, _write)


def _write(args: argparse.Namespace) -> None:
    from eval_zero_shot.outcome import read_results
    from eval_zero_shot.report.page import write_report

    if args.out.is_dir():
        raise EvalError("--out is a folder", why="the page is one file", fix="name a file, such as report.html")
    folders = args.results or ([args.run / "results"] if args.run else [])
    if not folders:
        raise EvalError("neither --results nor --run is given", why="there is nothing to show", fix="give one")
    models = args.model or ([str(args.run / "release")] if args.run else [])
    outcomes = [o for folder in folders for o in read_results(folder)]
    _require_of_one_kind(outcomes)
    metrics = args.run / "metrics.csv" if args.run and (args.run / "metrics.csv").is_file() else None
    wanted = not args.no_cases and models and args.data and args.task
    title = args.title or (args.run.name if args.run else folders[0].resolve().parent.name or "Evaluation")
    studies = _studies(models, args, outcomes) if wanted else ()
    comparisons = [c for folder in args.comparison for c in _compared(folder)]
    write_report(outcomes, args.out, title=title, comparisons=comparisons, metrics=metrics, studies=studies)
    missing = not wanted and not args.no_cases
    print(f"wrote {args.out}" + (" (numbers only: studies need --model, --data and --task)" if missing else ""))


def _require_of_one_kind(outcomes: Sequence[Outcome]) -> None:
    """Raise EvalError where results of one task are of other studies, scans or words: they would share a row."""
    from eval_zero_shot.paired import require_comparable

    before: dict[tuple[str, str], list[Outcome]] = {}
    for one in outcomes:
        others = before.setdefault((one.protocol, one.task), [])
        try:
            for other in others:  # each: scans `together` go with `first` and with `mean`, these two do not
                require_comparable(other, one)
        except EvalError as error:
            raise EvalError(
                f"{str(error).splitlines()[0]} ({one.model})",
                why="they would stand in one row of the page, as if they could be compared",
                fix="write a page for each, or score all models by one suite (eval_zero_shot.run)",
            ) from None
        others.append(one)


def _compared(folder: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["comparisons"]
        return [{**c, **{name: c[name] for name in NEEDED}} for c in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(
            "comparison", folder / "comparison.json", error, why="there would be no marks, or wrong ones",
            fix="name a folder that python -m eval_zero_shot.compare wrote with --out",
        ) from None  # fmt: skip


def _studies(models: Sequence[str], args: argparse.Namespace, outcomes: Sequence[Outcome]) -> Iterator[Shown]:
    """One model at a time with each of the tasks: release, shards, task and the rows whose scores are there.

    Raises EvalError where one of them is not what the results were made with: the page would show other studies,
    prompts or weights beside these numbers.
    """
    import numpy as np

    from eval_zero_shot.release import load_dual
    from eval_zero_shot.report.cases import Shown
    from eval_zero_shot.tasks import load_task

    shards, tasks = open_studies(args.data, args), [load_task(name) for name in args.task]
    for name in models:
        loaded = None
        for task in tasks:
            of = [o for o in outcomes if o.protocol == "classification"]
            here = [o for o in of if o.task == task.name and o.provenance.get("task_sha256") in (None, task.identity)]
            _require("--task", here)
            here = [o for o in here if o.provenance.get("data_sha256") in (None, shards.manifest_hash)]
            _require("--data", here)
            loaded = loaded or load_dual(name)
            here = [o for o in here if o.model_sha256 in ("", loaded.sha256)]
            _require("--model", here)
            scores = here[0].scores
            keys: set[Any] = set() if scores is None else set(scores["key"])
            every = here[0].provenance.get("scan_choice") == "every"
            cases: Any = EveryScan(shards, loaded.geometry.source) if every else shards
            rows = np.asarray([row for row in range(len(cases)) if cases.key(row) in keys])
            yield Shown(here[0].model, loaded, cases, rows, task)


def _require(option: str, left: Sequence[Outcome]) -> None:
    if not left:
        raise EvalError(
            f"{option} is not what these results were made with",
            why="the page would show other studies or another model beside these numbers",
            fix=f"name what was scored, or score again; numbers alone need no {option} (--no-cases)",
        )


if __name__ == "__main__":
    sys.exit(main())
