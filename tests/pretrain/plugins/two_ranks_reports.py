"""One of two gloo ranks, or both in one: `python two_ranks_reports.py RECIPE FOLDER [RANK]` writes losses and gradients
of the objectives that read reports to FOLDER/RANK.pt (or one.pt). What is drawn is the same on any number of ranks."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pretrain.module
from data_shards.batch import Batch, TextBatch
from encoders.tokenize import BPE
from pretrain.callbacks.metrics import over_ranks
from pretrain.config import load_recipe
from pretrain.module import Pretraining
from tests.pretrain.plugins.two_ranks import PARTS, average, batch, gradients_of, make_module, meeting

REPORT = "{width: 24, heads: 2, layers: 2, fusion_layers: 1, feedforward: 32, dropout: 0.0, max_sentences: 64}"
OBJECTIVES = (
    '{"name": "report_contrastive"}',
    '{"name": "matching"}, {"name": "report_contrastive"}',
    '{"name": "masked_language"}',
    '{"name": "masked_language", "condition": "image"}',
    '{"name": "hierarchical", "text": "sentences", "width": 8}, {"name": "hierarchical", "text": "words", "width": 8}',
)


# With `train.chunk` on the ranks, at once in the one process. The teacher is not the student.
IN_PARTS = (
    '{"name": "report_contrastive"}, {"name": "matching"}, {"name": "distillation", "width": 16}, '
    '{"name": "hierarchical", "text": "sentences", "width": 8}, {"name": "attended", "heads": 2}'
)


# Rank 0 has no text, and negatives are those of one rank: the two are rank 1 alone.
OWN_NEGATIVES = (
    '{"name": "report_contrastive", "gather": false}, '
    '{"name": "hierarchical", "text": "sentences", "width": 8, "gather": false}',
    '{"name": "hierarchical", "width": 8, "gather": false}, {"name": "matching", "gather": false}',
)


def same_draws(*shape: int, **how: Any) -> torch.Tensor:
    return torch.full(shape, 0.37, **how)


def main(recipe_file: str, folder: Path, rank: str = "one") -> None:
    torch.rand = same_draws  # type: ignore[assignment]
    results = []
    with meeting(folder, rank):
        for objectives in OBJECTIVES:
            words = [f"model.report={REPORT}", "model.image.token_dropout=0.0", f"objectives=[{objectives}]"]
            module = make_module(load_recipe(recipe_file, words))
            loss = module.compute(batch(PARTS[rank]))
            loss.backward()
            gradients, total = gradients_of(module), loss.detach().clone()
            average((total, *gradients.values()))  # of a loss in parts the mean
            results.append({"loss": total, "gradients": gradients, "logged": over_ranks(module.logged)})
        results.append(in_parts(recipe_file, rank))
        results += [
            without_text(recipe_file, rank, objectives, chunk)
            for objectives in OWN_NEGATIVES
            for chunk in ("null", "1")
        ]
    torch.save(results, folder / f"{rank}.pt")


def in_parts(recipe_file: str, rank: str) -> dict[str, Any]:
    words = [f"model.report={REPORT}", "model.image.token_dropout=0.5", f"objectives=[{IN_PARTS}]"]
    module: Any = make_module(load_recipe(recipe_file, [*words, f"train.chunk={'null' if rank == 'one' else 1}"]))
    module.dual.clip.visual.trunk.token_dropout = 0.0  # which tokens are dropped depends on the parts
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.objectives[2].teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return stepped(module, batch(PARTS[rank]))


def without_text(recipe_file: str, rank: str, objectives: str, chunk: str) -> dict[str, Any]:
    words = [f"model.report={REPORT}", "model.image.token_dropout=0.0", f"objectives=[{objectives}]"]
    module = make_module(load_recipe(recipe_file, [*words, f"train.chunk={chunk}"]))
    mine = batch(PARTS["1" if rank == "one" else rank])
    return stepped(module, replace(mine, texts=TextBatch.of([[], []], BPE(64))) if rank == "0" else mine)


def stepped(module: Any, mine: Batch) -> dict[str, Any]:
    """Loss and gradients as training has them, without a trainer; means over ranks."""
    module.manual_backward = lambda loss, **how: loss.backward(**how)
    pretrain.module.no_sync = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment]
    Pretraining.trainer = None  # type: ignore[assignment]
    loss = module._backward(mine, last=True)
    gradients, logged = gradients_of(module), over_ranks(module.logged)
    average((loss, *gradients.values()))
    return {"loss": loss, "gradients": gradients, "logged": logged}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
