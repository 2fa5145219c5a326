"""One of two gloo ranks, or both in one: `python two_ranks_sections.py RECIPE FOLDER [RANK]`. Batches about one
section, where rank 0 has no text, nobody has any, or both do; losses and gradients go to FOLDER/RANK.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from data_shards.batch import Batch, TextBatch
from data_shards.units import Unit, text_identity
from encoders.tokenize import BPE
from pretrain.config import load_recipe
from pretrain.objectives.base import UNIT_KINDS
from tests.pretrain.plugins.two_ranks import PARTS, average, gradients_of, make_module, meeting

NAN = float("nan")
SECTION = UNIT_KINDS.index("section")
LABELS = torch.tensor([[1, NAN], [NAN, NAN], [0, 1], [0, 0], [1, 0]])
# Texts of five studies, the first two of which are rank 0's.
CASES: tuple[tuple[str, ...], ...] = (
    ("", "", "The spleen is large.", "", "The spleen is normal."),
    ("", "", "", "", ""),
    ("The spleen is normal.", "", "The spleen is large.", "The spleen is normal.", ""),
)
OBJECTIVES = '[{"name": "contrastive", "units": ["report", "section"]}, {"name": "labels"}, {"name": "sentence"}]'


def batch(case: int, part: slice) -> Batch:
    images = torch.randn(5, 1, 16, 32, 32, generator=torch.Generator().manual_seed(case))[part]
    texts = CASES[case][part]
    units = [[Unit(SECTION, text, text_identity(text))] if text else [] for text in texts]
    keys = [str(i) for i in range(len(texts))]
    return Batch(
        0, torch.arange(len(texts)), keys, torch.arange(5)[part], images, LABELS[part], ("a", "b"),
        TextBatch.of(units, BPE(64)),
    )  # fmt: skip


def main(recipe_file: str, folder: Path, rank: str = "one") -> None:
    results = []
    with meeting(folder, rank):
        for case in range(len(CASES)):
            for centred in ("false", "true"):
                words = [f"objectives={OBJECTIVES}", f"model.centred={centred}", "model.image.token_dropout=0.0"]
                recipe = load_recipe(recipe_file, [*words, "data.units.alternate=anatomy"])
                module = make_module(recipe, ("a", "b"), lambda: torch.ones(1, 2))
                loss = module.compute(batch(case, PARTS[rank]))
                loss.backward()
                gradients, value = gradients_of(module), loss.detach().clone()
                average((value, *gradients.values()))  # labels are a rank's own, the others' losses are equal
                trained = {name for name, p in module.named_parameters() if p.requires_grad}
                unreached = sorted(trained - gradients.keys())
                means = sorted(module._means)
                results.append({"loss": value, "gradients": gradients, "unreached": unreached, "means": means})
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
