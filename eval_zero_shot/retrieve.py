"""Text-image retrieval of a released model, both directions, fair to identical texts and to ties.

    python -m eval_zero_shot.retrieve --model MODEL --data SHARDS [--split test] [--text report,findings,impression]
                                      [--pool 32 64 128 full] [--k 1 5 10 50 100] [--volumes] [--out DIR]

`retrieve` gives the same in pools for features at hand, as evaluation while training does.
Shapes: N studies, D embedding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.classify import unit
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import add_inputs, open_inputs, run_command
from eval_zero_shot.retrieval.pools import cut_pools, pool_hits
from eval_zero_shot.retrieval.ranks import DIRECTIONS, Direction
from eval_zero_shot.retrieval.texts import TEXT_KINDS, text_hash
from eval_zero_shot.retrieval.ties import expected_hits

if TYPE_CHECKING:
    from rich.console import Console

    from eval_zero_shot.outcome import Metric, Outcome

__all__ = ["DIRECTIONS", "Direction", "Recall", "main", "print_outcome", "retrieve", "text_hash"]


@dataclass(frozen=True)
class Recall:
    """R@k of one direction in pools of one size.

    value: mean over queries, pools and repeats. partition_low/high: 2.5 and 97.5 percentiles over repeats, that is the
    noise of cutting pools, NOT a sampling interval. chance_plain: k / pool. chance: expected value of random scores
    given the duplicate texts of these very pools. chance_measured: one run of random scores through the same code.
    `value` is None where the studies do not fill one pool; `reason` says so.
    """

    direction: Direction
    k: int
    pool: int
    value: float | None
    chance_plain: float
    chance: float | None = None
    chance_measured: float | None = None
    partition_low: float | None = None
    partition_high: float | None = None
    pools: int = 0
    repeats: int = 0
    studies: int = 0
    distinct_texts: int = 0
    reason: str | None = None


def retrieve(
    image_ND: ArrayLike,
    text_ND: ArrayLike,
    hashes_N: Sequence[str],
    *,
    pools: Sequence[int] = (64,),
    ks: Sequence[int] = (1, 5, 10),
    repeats: int = 100,
    seed: int = 0,
) -> tuple[Recall, ...]:
    """Recall of both directions for every pool size and k. Row i of both arrays is study i; any feature scale.

    hashes_N: identity of each study's text (`text_hash`); equal hashes count as each other's hit.
    Raises EvalError on features that are not finite, on lengths that differ, or on a pool or k below 1.
    """
    images, texts = unit(image_ND, "studies"), unit(text_ND, "reports")
    if images.shape != texts.shape or len(hashes_N) != len(images):
        raise EvalError(
            f"images {images.shape}, texts {texts.shape} and {len(hashes_N)} hashes do not fit together",
            why="study i would be matched with another study's text",
            fix="give one text vector and one hash for each study, from the same model",
        )
    if min(*pools, *ks, repeats) < 1:
        raise EvalError("a pool, k or repeat count below 1", why="no query is left", fix="give positive numbers")
    n = len(images)
    text_N = np.unique(np.asarray(hashes_N), return_inverse=True)[1].reshape(-1)
    out: list[Recall] = []
    for pool in pools:
        if n < pool:
            reason = f"{n} studies do not fill one pool of {pool}"
            out += [
                Recall(direction, k, pool, None, min(k / pool, 1.0), studies=n, reason=reason)
                for direction in DIRECTIONS
                for k in ks
            ]
            continue
        found = pool_hits(images, texts, text_N, pool, ks, repeats, seed)
        noise = _random_hits(text_N, pool, ks, repeats, seed)
        for direction in DIRECTIONS:
            ours = found[direction, "identical_texts"]
            low, high = np.percentile(ours.mean_RK, (2.5, 97.5), axis=0)
            out += [
                Recall(
                    direction, k, pool, float(ours.mean_RK[:, j].mean()), min(k / pool, 1.0), float(ours.chance_K[j]),
                    float(noise[direction][j]), float(low[j]), float(high[j]), n // pool, repeats, n,
                    len(np.unique(text_N)),
                )
                for j, k in enumerate(ks)
            ]  # fmt: skip
    return tuple(out)


def _random_hits(
    text_N: NDArray, pool: int, ks: Sequence[int], repeats: int, seed: int
) -> dict[Direction, NDArray[np.float64]]:
    """What random scores get in these very pools."""
    rng = np.random.Generator(np.random.Philox([seed, 1]))
    total = {direction: np.zeros(len(ks)) for direction in DIRECTIONS}
    for rows_QM in cut_pools(len(text_N), pool, repeats, seed):
        same_QMM = text_N[rows_QM][:, :, None] == text_N[rows_QM][:, None, :]
        random_QMM = rng.random(same_QMM.shape)
        for direction in DIRECTIONS:
            turn = (0, 2, 1) if direction == "text_to_image" else (0, 1, 2)
            total[direction] += expected_hits(random_QMM.transpose(turn), same_QMM, ks).mean(axis=(0, 1)) / repeats
    return total


def _pool(word: str) -> int | str:
    return word if word == "full" else int(word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.retrieve",
        description="Which image belongs to this text, which text to this image?",
    )
    add = parser.add_argument
    add_inputs(parser)
    add("--text", default="report", metavar="KINDS", help=f"of {', '.join(TEXT_KINDS)}, by commas (default: report)")
    add("--pool", nargs="+", type=_pool, default=[32, 64, 128, "full"], metavar="N",
        help="studies to choose among, or full (default: 32 64 128 full)")  # fmt: skip
    add("--k", nargs="+", type=int, default=[1, 5, 10, 50, 100], metavar="K", help="of R@k (default: 1 5 10 50 100)")
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
    """A table of recalls (or MAPs) against chance, then the notes."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table("direction", "pool", "hits", "metric", "value", "95 % of patients", "95 % of cuts", "chance")
    table.title = f"{outcome.task}: {outcome.model}, {outcome.studies} studies"
    for m in outcome.metrics:
        if "noise" in m.at or m.name == "chance":
            continue
        cut, chance = outcome.metric(m.name, m.of, **m.at, noise="partition"), outcome.metric("chance", m.of, **m.at)
        name = m.name if "k" not in m.at else f"{'R' if m.name == 'recall' else 'MAP'}@{m.at['k']}"
        hits = str(m.at.get("ties") or m.at.get("relevance") or "")
        value = f"{m.value:.3f}" if m.value is not None else f"- ({m.reason})"
        table.add_row(
            m.of or "mean", str(m.at.get("pool", "")), hits, name, value, _span(m), _span(cut), _value(chance)
        )
    console.print(table)
    for note in outcome.notes:
        console.print(note, highlight=False)


def _value(metric: Metric | None) -> str:
    return "" if metric is None or metric.value is None else f"{metric.value:.3f}"


def _span(metric: Metric | None) -> str:
    return "" if metric is None or metric.low is None else f"{metric.low:.3f}-{metric.high:.3f}"


if __name__ == "__main__":
    sys.exit(main())
