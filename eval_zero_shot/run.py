"""Score models on a suite of tasks, compare them, and write tables and a page.

    python -m eval_zero_shot.run --models RELEASE [MODEL ...] --suite SUITE.yaml --out DIR
    python -m eval_zero_shot.run --models RELEASE --data SHARDS --task NAME [NAME ...] [--split test] [--out DIR]

The second form is a suite of its own: classification of each task, and retrieval of reports where the studies have any.
What is scored already in DIR is kept: started again, a run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.opening import add_tar_options
from eval_zero_shot.cases import Scans, add_scans
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import add_embedding, require_folder, run_command
from eval_zero_shot.suite_file import Classification, Retrieval, Suite
from eval_zero_shot.suite_read import load_suite, require_names, require_places, with_bases

DEFAULT = "default"  # comparisons with each task's default prompts

if TYPE_CHECKING:
    from eval_zero_shot.inputs import Inputs
    from eval_zero_shot.outcome import Outcome
    from eval_zero_shot.report.cases import Shown


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0; 1 with the reason on stderr, also where only some entries could be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--models",
        "--model",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="release folders, or what eval_zero_shot.models lists; the first is what the others are compared with",
    )
    add("--suite", type=Path, metavar="FILE", help="YAML of tasks and protocols (docs/suite.md)")
    add("--data", metavar="DIR", help="shard set (folder or URL) or published .tar files, without --suite")
    add("--task", nargs="+", default=[], metavar="NAME", help="packaged tasks or YAML files, without --suite")
    add("--split", default="test", metavar="NAME", help="split to score, without --suite (default: test)")
    add("--pool", nargs="*", default=["64", "full"], metavar="N", help="retrieval pools; none: no retrieval")
    add("--max-studies", type=int, metavar="N", help="score a fixed choice of N studies, without --suite")
    add("--resamples", type=int, default=1000, metavar="N", help="patient bootstrap, without --suite (default: 1000)")
    add("--reference", metavar="NAME", help="model the others are compared with (default: the suite's, else the first)")
    add("--out", type=Path, metavar="DIR", help="results.json, scores.parquet, results.csv, comparisons, report.html")
    add("--no-cases", action="store_true", help="a page without images and sentences of studies")
    add_scans(parser)
    add_embedding(parser)
    add_tar_options(parser)
    failed: list[str] = []
    code = run_command(parser, argv, lambda args: failed.extend(_run(args)))
    return 1 if failed else code


def _run(args: argparse.Namespace) -> list[str]:
    """Names of the entries that could not be scored."""
    import tempfile

    from eval_zero_shot.outcome import write_results
    from eval_zero_shot.release import model_name
    from eval_zero_shot.spreadsheet import write_csv
    from eval_zero_shot.suite import run_suite
    from eval_zero_shot.suite_protocols import PROTOCOLS
    from eval_zero_shot.suite_table import print_outcomes

    suite = _suite(args)
    names = [model_name(model) for model in args.models]
    if len(set(names)) < len(names):
        raise EvalError(
            f"two models are called {next(n for n in names if names.count(n) > 1)}",
            why="their rows would be one",
            fix="rename a folder, or name each model once",
        )
    require_names(suite)  # said before torch is imported, as what is wrong with a task
    suite = with_bases(suite, dict(zip(names, args.models, strict=True)))
    opened = Opened(args)
    require_folder(args.out)
    require_places(suite, names, args.reference or suite.reference, lambda data: opened.shards(data).manifest["splits"])
    with tempfile.TemporaryDirectory(prefix="voxclip-") as scratch:
        out = args.out or Path(scratch)
        found, failed = run_suite(suite, args.models, out, opened, PROTOCOLS, lambda said: print(said, file=sys.stderr))
        if args.suite is None:
            _print_each(found)
        print_outcomes(found)
        if args.out and found:
            about = {"suite": suite.name, "about": suite.about, "models": list(dict.fromkeys(o.model for o in found))}
            write_results(out, found, about)
            write_csv(out / "results.csv", found)
        compared = _compared(args, suite, found)
        if args.out and found:
            _page(args, suite, found, compared, opened)
            print(f"wrote {out}: results.json, results.csv, scores.parquet, report.html")
    if args.suite is None:  # retrieval was not asked for by name: of studies without texts there is none
        for lost in (one for one in failed if one.entry == "retrieval"):
            print(f"no retrieval: {lost.reason}", file=sys.stderr)
        failed = [lost for lost in failed if lost.entry != "retrieval"]
    for lost in failed:
        print(f"error: {lost.model}, {lost.entry}: {lost.reason}", file=sys.stderr)
    return [lost.entry for lost in failed]


def _compared(args: argparse.Namespace, suite: Suite, found: Sequence[Outcome]) -> list[Any]:
    """Every model against the reference; what cannot be compared is told."""
    from eval_zero_shot.compare import compare, print_comparisons, write_comparisons
    from eval_zero_shot.release import model_name

    models = list(dict.fromkeys(o.model for o in found))
    base = args.reference or suite.reference or model_name(args.models[0])
    if args.out:
        shutil.rmtree(args.out / "comparisons", ignore_errors=True)
    if len(models) < 2 or base not in models:
        if len(args.models) > 1:
            print(f"no comparison: the reference {base} has no results", file=sys.stderr)
        return []
    compared: list[Any] = []
    for model in models:
        if model == base:
            continue
        pairs = [[o for o in found if o.model == name] for name in (model, base)]
        one = compare(*pairs, tell=lambda said: print(f"not compared: {said}", file=sys.stderr))
        if one:
            print_comparisons(one)
            compared += one
            if args.out:
                write_comparisons(args.out / "comparisons" / model, one)
    return compared


def _print_each(found: Sequence[Outcome]) -> None:
    from eval_zero_shot.classification_table import print_classification
    from eval_zero_shot.retrieve import print_outcome

    for outcome in found:
        (print_classification if outcome.protocol == "classification" else print_outcome)(outcome)


def _suite(args: argparse.Namespace) -> Suite:
    """The file's, or that of --data and --task."""
    if args.suite:
        if args.data or args.task:
            raise EvalError("--suite beside --data or --task", why="the file names them", fix="leave them out")
        if args.scans is not None:
            why, fix = "the file says it of each entry", f"write scans: {args.scans} into its entries"
            raise EvalError("--suite beside --scans", why=why, fix=fix)
        return load_suite(args.suite)
    if not args.data or not args.task:
        fix = "give --suite FILE, or --data SHARDS and --task NAME"
        raise EvalError("there is nothing to score", why="neither a suite nor a task is named", fix=fix)
    common: dict[str, Any] = {
        "split": args.split, "max_studies": args.max_studies, "resamples": args.resamples, "scans": args.scans
    }  # fmt: skip
    entries: list[Any] = [Classification(protocol="classification", task=task, **common) for task in args.task]
    if args.pool:
        try:
            pools = tuple("full" if pool == "full" else int(pool) for pool in args.pool)
        except ValueError:
            raise EvalError(f"--pool {' '.join(args.pool)}", why="no such pools", fix="numbers, or full") from None
        entries.append(Retrieval(protocol="retrieval", pools=pools, **common))
    return Suite(name="tasks", data=args.data, entries=tuple(entries))


class Opened:
    """Models and shard sets of a run, the last of each kept open: entries of one model follow each other."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._model: tuple[str, Any] | None = None
        self._shards: dict[str, Any] = {}

    def shards(self, data: str) -> Any:
        from data_shards.opening import open_studies

        if data not in self._shards:
            self._shards[data] = open_studies(data, self.args)
        return self._shards[data]

    def __call__(self, model: str, data: str | None, scans: Scans | None = None) -> Inputs:
        from eval_zero_shot.feature_cache import FeatureCache
        from eval_zero_shot.inputs import Inputs
        from eval_zero_shot.release import load_release, model_name

        if self._model is None or self._model[0] != model:
            self._model = None  # freed before the next is loaded
            self._model = (model, load_release(model, self.args.device))
        cache = None if self.args.no_cache else FeatureCache(self.args.cache)
        shards = None if data is None else self.shards(data)
        return Inputs(
            model_name(model), self._model[1], shards, cache, self.args.batch_size, self.args.precision, self.args,
            scans,
        )  # fmt: skip


def _page(
    args: argparse.Namespace, suite: Suite, found: Sequence[Outcome], compared: Sequence[Any], opened: Opened
) -> None:
    from eval_zero_shot.report import write_report

    write_report(
        found, args.out / "report.html", title=suite.name,
        comparisons=[c.to_dict() for c in compared if c.prompts == DEFAULT],
        studies=() if args.no_cases else _studies(suite, args.models, opened, found),
    )  # fmt: skip


def _studies(suite: Suite, models: Sequence[str], opened: Opened, found: Sequence[Outcome]) -> Iterator[Shown]:
    """What the page may show, a model at a time: the studies of each classification that was scored. Of findings, for
    which the page has pictures."""
    from eval_zero_shot.release import model_name
    from eval_zero_shot.report.cases import Shown
    from eval_zero_shot.tasks import load_task

    known = {(o.model, o.task, o.provenance.get("task_sha256")) for o in found if o.protocol == "classification"}
    for model in models:
        if model_name(model) not in {name for name, *_ in known}:
            continue  # it could not be loaded
        for entry in suite.entries:
            if not isinstance(entry, Classification) or entry.name:
                continue
            task = load_task(entry.task)
            if task.kind != "findings" or (model_name(model), task.name, task.identity) not in known:
                continue  # no pictures, or it could not be scored
            inputs = opened(model, suite.data_of(entry), entry.scans)
            rows = inputs.rows(entry.split, entry.max_studies)
            yield Shown(inputs.name, inputs.loaded, inputs.shards, rows, task)


if __name__ == "__main__":
    sys.exit(main())
