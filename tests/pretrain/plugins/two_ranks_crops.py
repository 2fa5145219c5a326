"""One of two gloo ranks, or both in one: `python two_ranks_crops.py RECIPE FOLDER [RANK]` writes gradients of
`Pretraining.compute` with the objectives on crops, of images without texts, to FOLDER/RANK.pt (or one.pt).

Crops are the same parts of every image here; else two ranks would see others than one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from data_shards.batch import Batch, TextBatch
from pretrain import crops
from pretrain.config import load_recipe
from tests.pretrain.plugins.two_ranks import PARTS, average, gradients_of, make_module, meeting

STILL = {"jitter": 0.0, "blur": 0.0, "flip": 0.0}
MAPS = STILL | {"cells": 2}  # byol, whose pass is its own, reads none
PAIR = {"views": "crops", "dim": 8, "crops": MAPS}
OBJECTIVES: list[dict[str, Any]] = [
    {"name": "graph_matching", "dim": 8, "temperature": 0.0, "neighbours": 2, "crops": MAPS},
    {"name": "simclr", **PAIR},
    *({"name": name, "hidden": 8, **PAIR} for name in ("vicreg", "barlow_twins")),
    {"name": "byol", "hidden": 8, **PAIR, "crops": STILL},
]


def same_parts(n: int, *_: Any) -> crops.Boxes:
    """Of the first half of n crops the upper left, of the others the lower right."""
    half = torch.arange(n) >= n // 2
    start, side = torch.where(half, 0.3, 0.0), torch.full((n,), 0.7)
    return crops.Boxes(start, start, side, side, torch.zeros(n, dtype=torch.bool))


def batch(part: slice) -> Batch:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))[part]
    rows = torch.arange(5)[part]
    texts = TextBatch.of([[] for _ in rows], lambda text: [])
    return Batch(0, rows, [str(i) for i in rows], rows, images, torch.zeros(len(rows), 0), (), texts)


def main(recipe_file: str, folder: Path, rank: str = "one") -> None:
    crops.draw_boxes = same_parts
    recipe = load_recipe(recipe_file, [f"objectives={json.dumps(OBJECTIVES)}"])
    with meeting(folder, rank):
        module = make_module(recipe)
        loss = module.compute(batch(PARTS[rank]))
        loss.backward()
        found = gradients_of(module) | {"loss": loss.detach()}
        average(found.values())
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
