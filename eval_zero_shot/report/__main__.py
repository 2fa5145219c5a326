"""The report page of an evaluation.

python -m eval_zero_shot.report --results DIR [--model RELEASE --data SHARDS --task NAME] [--run RUN] --out report.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.opening import add_tar_options, open_studies
from eval_zero_shot.errors import EvalError


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.report", description="One self-contained HTML page of an evaluation."
    )
    add = parser.add_argument
    add("--results", type=Path, metavar="DIR", help="folder of eval_zero_shot.run --out (default: RUN/results)")
    add("--run", type=Path, metavar="DIR", help="run folder: adds training curves; its release is the default --model")
    add("--model", metavar="DIR", help="release folder, for the parts that show studies")
    add("--data", metavar="DIR", help="shard set that was scored")
    add("--task", metavar="NAME", help="task that was scored")
    add("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    add("--title", default=None, help="heading of the page")
    add("--no-cases", action="store_true", help="numbers only: no image and no sentence of a study")
    add_tar_options(parser)
    args = parser.parse_args(argv)
    from data_shards.errors import DataError
    from encoders.errors import ReleaseError
    from eval_zero_shot.report.page import write_report

    try:
        results = args.results or (args.run / "results" if args.run else None)
        if results is None:
            raise EvalError("neither --results nor --run is given", why="there is nothing to show", fix="give one")
        model = args.model or (str(args.run / "release") if args.run else None)
        metrics = args.run / "metrics.csv" if args.run and (args.run / "metrics.csv").is_file() else None
        cases: dict[str, Any] = {}
        if not args.no_cases and model and args.data and args.task:
            cases = _cases(model, args, results)
        title = args.title or (args.run.name if args.run else results.parent.name or "Evaluation")
        write_report(results, args.out, title=title, metrics=metrics, **cases)
    except (EvalError, DataError, ReleaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    missing = not cases and not args.no_cases
    print(f"wrote {args.out}" + (" (numbers only: studies need --model, --data and --task)" if missing else ""))
    return 0


def _cases(model: str, args: argparse.Namespace, results: Path) -> dict[str, Any]:
    """Release, shards, task and the rows whose scores are there.

    Raises EvalError where one of them is not what the results were made with: the page would show other studies,
    prompts or weights beside these numbers.
    """
    import numpy as np

    from eval_zero_shot.release import load_dual
    from eval_zero_shot.results import read_results, read_scores
    from eval_zero_shot.tasks import load_task

    about = read_results(results)["provenance"]
    shards, task = open_studies(args.data, args), load_task(args.task)
    _require_same("--data", "data_sha256", shards.manifest_hash, about)
    _require_same("--task", "task_sha256", task.identity, about)
    loaded = load_dual(model)
    _require_same("--model", "release_sha256", loaded.sha256, about)
    keys = {key for key, _ in read_scores(results)}
    rows = [row for row in range(len(shards)) if shards.key(row) in keys]
    return {"loaded": loaded, "shards": shards, "rows": np.asarray(rows), "task": task}


def _require_same(option: str, name: str, found: str, about: dict[str, Any]) -> None:
    if about.get(name) not in (None, found):
        raise EvalError(
            f"{option} is not what these results were made with ({name} differs)",
            why="the page would show other studies or another model beside these numbers",
            fix=f"name what was scored, or score again; numbers alone need no {option} (--no-cases)",
        )


if __name__ == "__main__":
    sys.exit(main())
