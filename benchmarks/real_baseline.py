"""What a linear model reads from a thumbnail: `python -m benchmarks.real_baseline SHARDS --labels A,B,C`.

Logistic regression (eval_zero_shot.probe) on 16x16x16 means of a CT or 16x16 of each colour of an image, trained and
scored on the same splits as a recipe. An encoder that does no better has learnt nothing.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from eval_zero_shot.probe.fitting import Fitted
    from eval_zero_shot.probe.split import Split


def thumbnail_of(shards: Any, row: int) -> np.ndarray:
    """16x16x16 (volumes, HU clipped to ±1000) or 16x16 (images, each of their colours) means, flattened."""
    from PIL import Image

    from benchmarks.phantom_floor import thumbnail

    source, _ = shards.scan(row, 0)
    if isinstance(source, bytes):
        with Image.open(io.BytesIO(source)) as image:
            colours = image.convert("L" if image.mode in ("1", "L") else "RGB")
            small = colours.resize((16, 16), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.float64).ravel() / 255
    return thumbnail(source[:]).astype(np.float64)


def thumbnail_probe(
    shards: Any, labels: Sequence[str], train_split: str = "train", test_split: str = "test"
) -> tuple[Fitted, Split]:
    """The fit, scored on the test split, and that split: labels and patients of the studies. As in probes of towers, a
    split `val` chooses the strength and is then learnt from too."""
    from eval_zero_shot.probe import Split, probe
    from eval_zero_shot.probe.fitting import STRENGTHS
    from eval_zero_shot.probe.split import require_apart, scaling

    every_NL = shards.labels(tuple(labels))

    def split(name: str) -> Split:
        rows = shards.rows(name)
        features = np.stack([thumbnail_of(shards, int(row)) for row in rows])
        return Split(features, every_NL[rows], np.array([shards.patient(int(row)) for row in rows]))

    train, test = split(train_split), split(test_split)
    held = split("val") if shards.manifest["splits"].get("val") else None
    require_apart(train=train.patients_N, val=None if held is None else held.patients_N, test=test.patients_N)
    scale = scaling(train)
    chosen_on = None if held is None else held.scaled(*scale)
    # Pixels side by side are nearly the same: at the largest strengths the optimum is out of reach of fp64.
    return probe(train.scaled(*scale), chosen_on, test.scaled(*scale).features_ND, strengths=STRENGTHS[:-3]), test


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
    from eval_zero_shot.probe.measures import measure

    labels = tuple(args.labels.split(","))
    found, test = thumbnail_probe(ShardSet.open(args.shards), labels, args.train_split, args.test_split)
    metrics = measure(found.logits_NL, test.labels_NL, test.patients_N, labels, False, found.base_L)
    print("| label | thumbnail AUROC | 95 % interval | test + / - |\n|---|---|---|---|")
    for metric in (m for m in metrics if m.name == "auroc"):
        span = metric.reason if metric.low is None else f"{metric.low:.2f}–{metric.high:.2f}"
        value = "–" if metric.value is None else f"{metric.value:.3f}"
        column_N = test.labels_NL[:, labels.index(metric.of)] if metric.of else None
        counts = "" if column_N is None else f"{int((column_N == 1).sum())}/{int((column_N == 0).sum())}"
        print(f"| {metric.of or '**macro**'} | {value} | {span} | {counts} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
