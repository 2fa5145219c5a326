"""What a linear model reads from a thumbnail: `python -m benchmarks.real_baseline SHARDS --labels A,B,C`.

Logistic regression (eval_zero_shot.probe: C by folds over patients) on 16x16x16 means of a CT or 16x16 of a radiograph,
trained and scored on the same splits as a recipe. An encoder that does no better has learnt nothing.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

import numpy as np


def thumbnail_of(shards: object, row: int) -> np.ndarray:
    """16x16x16 (volumes, HU clipped to ±1000) or 16x16 (images) means, flattened."""
    from PIL import Image

    from benchmarks.phantom_floor import thumbnail

    source, _ = shards.scan(row, 0)  # type: ignore[attr-defined]
    if isinstance(source, bytes):
        with Image.open(io.BytesIO(source)) as image:
            small = image.convert("L").resize((16, 16), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.float64).ravel() / 255
    return thumbnail(source[:]).astype(np.float64)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_baseline", description="What a linear model reads from a thumbnail."
    )
    add = parser.add_argument
    add("shards", metavar="SHARDS", help="shard set with labels")
    add("--labels", required=True, metavar="A,B", help="labels to learn")
    add("--train-split", default="train", metavar="NAME", help="default: train")
    add("--test-split", default="test", metavar="NAME", help="default: test")
    args = parser.parse_args(argv)
    from data_shards.shard_set import ShardSet
    from eval_zero_shot.probe import Split, probe

    shards, labels = ShardSet.open(args.shards), tuple(args.labels.split(","))
    every_NL = shards.labels(labels)

    def split(name: str) -> Split:
        rows = shards.rows(name)
        features = np.stack([thumbnail_of(shards, int(row)) for row in rows])
        return Split(features, every_NL[rows], np.array([shards.patient(int(row)) for row in rows]))

    found, macro, _ = probe(split(args.train_split), None, split(args.test_split), labels)
    print("| label | thumbnail AUROC | 95 % interval | test + / - |\n|---|---|---|---|")
    for p in found:
        span = p.interval.reason or f"{p.interval.low:.2f}–{p.interval.high:.2f}"
        value = "–" if p.auroc is None else f"{p.auroc:.3f}"
        print(f"| {p.label} | {value} | {span} | {p.test_positive}/{p.test_negative} |")
    if macro is not None and macro.value is not None:
        print(f"| **macro** | {macro.value:.3f} | | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
