"""One of two gloo ranks, or both in one: `python two_ranks_reports.py RECIPE FOLDER [RANK]` writes losses and gradients
of the objectives that read reports to FOLDER/RANK.pt (or one.pt). What is drawn is the same on any number of ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from two_ranks import PARTS, batch

from pretrain import build
from pretrain.config import load_recipe
from pretrain.module import Pretraining
from pretrain.objectives.base import Surroundings

REPORT = "{width: 24, heads: 2, layers: 2, fusion_layers: 1, feedforward: 32, dropout: 0.0, max_sentences: 64}"
OBJECTIVES = ("report_contrastive", "matching", "masked_language", 'masked_language", "condition": "image')


def same_draws(*shape: int, **how: Any) -> torch.Tensor:
    return torch.full(shape, 0.37, **how)


def main(recipe_file: str, folder: Path, rank: str = "one") -> None:
    torch.rand = same_draws  # type: ignore[assignment]
    if rank != "one":
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=2)
    results = []
    for name in OBJECTIVES:
        words = [f"model.report={REPORT}", "model.image.token_dropout=0.0"]
        entries = f'{{"name": "{name}"}}' + (', {"name": "report_contrastive"}' if name == "matching" else "")
        recipe = load_recipe(recipe_file, [*words, f"objectives=[{entries}]"])
        torch.manual_seed(0)
        dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
        for objective in objectives:
            objective.attach(Surroundings(dual, ()))
        module = Pretraining(recipe, dual, objectives).train()
        loss = module.compute(batch(PARTS[rank]))
        loss.backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        total = loss.detach().clone()
        if rank != "one":
            for gradient in (total, *gradients.values()):  # what DDP does, and of a loss in parts the mean
                dist.all_reduce(gradient)
                gradient /= 2
        results.append({"loss": total, "gradients": gradients})
    torch.save(results, folder / f"{rank}.pt")
    if rank != "one":
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
