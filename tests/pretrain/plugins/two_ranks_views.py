"""One of two gloo ranks, or both in one: `python two_ranks_views.py RECIPE FOLDER [RANK]` writes gradients of
`Pretraining.compute` with the objectives on two views to FOLDER/RANK.pt (or one.pt).

Views depend on the study alone here, whichever rank has it; else two ranks would see other views than one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from two_ranks import PARTS, batch

from pretrain import build, views
from pretrain.config import load_recipe
from pretrain.module import Pretraining
from pretrain.objectives.base import Surroundings

OBJECTIVES = '[{"name": "simclr", "dim": 8, "temperature": 0.1}, {"name": "rotation"}, {"name": "inpainting"}]'
drawn = views.two_views


def by_study(images: torch.Tensor, *settings: float) -> views.TwoViews:
    made = []
    for image in images:
        torch.manual_seed(int(image.sum() * 1000) % 2**31)
        made.append(drawn(image[None], *settings))
    whole: dict[str, Any] = {
        field: torch.cat([getattr(one, field)[view : view + 1] for view in (0, 1) for one in made])
        for field in ("images", "clean", "dropped", "turns")
    }
    return views.TwoViews(**whole)


def main(recipe_file: str, folder: Path, rank: str = "one") -> None:
    if rank != "one":
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=2)
    views.two_views = by_study
    recipe = load_recipe(recipe_file, [f"objectives={OBJECTIVES}", "model.image.token_dropout=0.0"])
    torch.manual_seed(0)
    dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
    for objective in objectives:
        objective.attach(Surroundings(dual, ()))
    module = Pretraining(recipe, dual, objectives).train()
    module.compute(batch(PARTS[rank])).backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    found["mean"] = torch.tensor(module.logged["loss/rotation"])
    if rank != "one":
        for value in found.values():  # what DDP does
            dist.all_reduce(value)
            value /= 2
    torch.save(found, folder / f"{rank}.pt")
    if rank != "one":
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
