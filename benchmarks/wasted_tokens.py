"""Padding that text towers run over, and what a context cuts off, on real captions.

    python -m benchmarks.wasted_tokens --data ROOT

8,192 figure captions (ROOT/text/roco_captions_ccby.csv.gz), drawn with a fixed seed, in batches of 256, by the BPE of
open_clip: padded to the context as open_clip does, and in length buckets, as Hugging Face towers run here. The native
tower reads packed texts, without padding.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encoders.attention import bucketed_tokens
from encoders.tokenize import BPE

TEXTS, BATCH = 8192, 256


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Padding that text towers run over, on real captions.")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder with text/")
    parser.add_argument("--context", type=int, nargs="+", default=[77, 256, 512], help="default: 77 256 512")
    args = parser.parse_args(argv)
    with gzip.open(args.data / "text" / "roco_captions_ccby.csv.gz", "rt", encoding="utf-8") as file:
        every = [row["caption"] for row in csv.DictReader(file)]
    texts = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:TEXTS]]
    whole = np.array([len(ids) for ids in map(BPE(100_000), texts)])
    print(f"{len(texts)} captions, mean {whole.mean():.0f} tokens, longest {whole.max()}\n")
    print("| context | padded to it | in buckets | texts cut | tokens lost |\n|---|---|---|---|---|")
    for context in args.context:
        kept = np.minimum(whole, context)
        batches = [tuple(kept[at : at + BATCH].tolist()) for at in range(0, len(kept), BATCH)]
        padded, buckets = context * len(kept), sum(map(bucketed_tokens, batches))
        shares = (1 - kept.sum() / padded, 1 - kept.sum() / buckets, (whole > context).mean())
        told = [f"{100 * share:.1f} %" for share in (*shares, 1 - kept.sum() / whole.sum())]
        print(f"| {context} | {' | '.join(told)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
