"""One of two gloo ranks, or both in one: `python two_ranks_reports.py RECIPE FOLDER [RANK]` writes losses and gradients
of the objectives that read reports to FOLDER/RANK.pt (or one.pt). What is drawn is the same on any number of ranks."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch

import pretrain.module
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
            results.append({"loss": total, "gradients": gradients})
        results.append(in_parts(recipe_file, rank))
    torch.save(results, folder / f"{rank}.pt")


def in_parts(recipe_file: str, rank: str) -> dict[str, Any]:
    words = [f"model.report={REPORT}", "model.image.token_dropout=0.5", f"objectives=[{IN_PARTS}]"]
    module: Any = make_module(load_recipe(recipe_file, [*words, f"train.chunk={'null' if rank == 'one' else 1}"]))
    module.dual.clip.visual.trunk.token_dropout = 0.0  # which tokens are dropped depends on the parts
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.objectives[2].teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    module.manual_backward = lambda loss, **how: loss.backward(**how)
    pretrain.module.no_sync = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment]
    Pretraining.trainer = None  # type: ignore[assignment]
    loss = module._backward(batch(PARTS[rank]), last=True)
    gradients = gradients_of(module)
    average((loss, *gradients.values()))
    return {"loss": loss, "gradients": gradients}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
