"""One of two gloo ranks, or both in one: `python two_ranks_views.py RECIPE FOLDER [RANK]` writes gradients of
`Pretraining.compute` with the objectives on two views to FOLDER/RANK.pt (or one.pt).

Views depend on the study alone here, whichever rank has it; else two ranks would see other views than one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from pretrain import views
from pretrain.config import load_recipe
from tests.pretrain.plugins.two_ranks import PARTS, average, batch, gradients_of, make_module, meeting

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
    views.two_views = by_study
    recipe = load_recipe(recipe_file, [f"objectives={OBJECTIVES}", "model.image.token_dropout=0.0"])
    with meeting(folder, rank):
        module = make_module(recipe)
        module.compute(batch(PARTS[rank])).backward()
        found = gradients_of(module) | {"mean": torch.tensor(module.logged["loss/rotation"])}
        average(found.values())
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
