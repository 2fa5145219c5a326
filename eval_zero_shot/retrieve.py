"""Text-image retrieval of a released model, both directions, fair to identical texts and to ties.

    python -m eval_zero_shot.retrieve --model MODEL --data SHARDS [--split test] [--text report,findings,impression]
                                      [--pool 32 64 128 full] [--k 1 5 8 10 50 100] [--volumes] [--out DIR]

docs/retrieval.md says what each number is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval_zero_shot.cases import add_scans
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import add_inputs, open_inputs, run_command
from eval_zero_shot.retrieval import KS, POOLS
from eval_zero_shot.retrieval.texts import TEXT_KINDS

if TYPE_CHECKING:
    from rich.console import Console

    from eval_zero_shot.outcome import Metric, Outcome

ARROWS = {"text_to_image": "text → image", "image_to_text": "image → text", "volume_to_volume": "volume → volume"}


def _pool(word: str) -> int | str:
    return word if word == "full" else int(word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.retrieve",
        description="Which image belongs to this text, which text to this image?",
    )
    add = parser.add_argument
    add_inputs(parser)
    add_scans(parser)
    add("--text", default="report", metavar="KINDS", help=f"of {', '.join(TEXT_KINDS)}, by commas (default: report)")
    pools, ks = (" ".join(map(str, default)) for default in (POOLS, KS))
    add("--pool", nargs="+", type=_pool, default=list(POOLS), metavar="N",
        help=f"studies to choose among, or full (default: {pools})")  # fmt: skip
    add("--k", nargs="+", type=int, default=list(KS), metavar="K", help=f"of R@k (default: {ks})")
    add("--repeats", type=int, default=100, metavar="N", help="how often pools are cut (default: 100)")
    add("--keep-short-pool", action="store_true", help="count the last short pool too, labelled, as SPECTRE does")
    add("--volumes", action="store_true", help="volume to volume too: MAP@{1,5,10,50} by the labels of the shards")
    add("--labels", metavar="NAMES", help="of --volumes, by commas (default: all)")
    add("--same-patient", action="store_true", help="of --volumes: the patient's other studies may be found")
    add("--resamples", type=int, default=1000, metavar="N", help="patient bootstrap (default: 1000)")
    add("--seed", type=int, default=0, help="of pools and resamples (default: 0)")
    add("--out", metavar="DIR", help="folder for results.json and scores.parquet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    return run_command(_parser(), argv, _score)


def _score(args: argparse.Namespace) -> None:
    kinds = list(dict.fromkeys(kind.strip() for kind in args.text.split(",") if kind.strip()))
    strange = [kind for kind in kinds if kind not in TEXT_KINDS]
    if strange or not kinds:
        raise EvalError(
            f"--text {args.text}: no such kind of text",
            why="nothing could be paired",
            fix=f"of: {', '.join(TEXT_KINDS)}",
        )
    inputs = open_inputs(args)
    rows = inputs.rows(args.split, args.max_studies)
    from eval_zero_shot.outcome import write_results
    from eval_zero_shot.retrieval.protocol import score_retrieval, score_volumes

    shared = {"split": args.split, "resamples": args.resamples, "seed": args.seed}
    outcomes = [
        score_retrieval(
            inputs, rows, text=kind, pools=args.pool, ks=args.k, repeats=args.repeats,
            short_pool=args.keep_short_pool, device=_device(args.device), **shared,
        )
        for kind in kinds
    ]  # fmt: skip
    if args.volumes:
        labels = [name.strip() for name in (args.labels or "").split(",") if name.strip()]
        outcomes.append(score_volumes(inputs, rows, labels=labels, same_patient=args.same_patient, **shared))
    for outcome in outcomes:
        print_outcome(outcome)
    if args.out:
        print(f"wrote {write_results(args.out, outcomes, {'command': 'retrieve'})} and scores.parquet")


def _device(asked: str) -> str:
    """Where ranks are counted: the GPU where models run there too."""
    import torch

    return "cpu" if asked == "cpu" or not torch.cuda.is_available() else ("cuda" if asked == "auto" else asked)


def print_outcome(outcome: Outcome, console: Console | None = None) -> None:
    """A table of recalls (or MAPs) against chance, narrow enough for 80 columns, then the notes."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(title=f"{outcome.task}: {outcome.model}, {outcome.counted}", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for heading in ("pool", "value", "95 % interval", "strict", "chance"):
        table.add_column(heading, justify="right", no_wrap=True)
    main = outcome.main
    table.add_row(f"mean {main.name.replace('_', ' ')}", "", _value(main), _span(main), "", "", style="bold")
    for m in outcome.metrics:
        if "noise" in m.at or "k" not in m.at or m.name == "chance" or m.at.get("ties") == "strict":
            continue
        name = f"{ARROWS.get(m.of, m.of)} {'R' if m.name == 'recall' else 'MAP'}@{m.at['k']}"
        if m.value is None:
            continue  # the notes say why
        strict = outcome.metric(m.name, m.of, **{**m.at, "ties": "strict"}) if "ties" in m.at else None
        name += f" {m.at['relevance']}" if "relevance" in m.at else ""
        chance = outcome.metric("chance", m.of, **m.at)
        table.add_row(name, str(m.at.get("pool", "")), _value(m), _span(m), _value(strict), _value(chance))
    console.print(table)
    if any("ties" in m.at for m in outcome.metrics):
        console.print("value: identical texts are hits; strict: only the study's own.", highlight=False)
    for note in outcome.notes:
        console.print(note, highlight=False)


def _value(metric: Metric | None) -> str:
    return "" if metric is None or metric.value is None else f"{metric.value:.3f}"


def _span(metric: Metric | None) -> str:
    return "" if metric is None or metric.low is None else f"{metric.low:.3f}–{metric.high:.3f}"


if __name__ == "__main__":
    sys.exit(main())
