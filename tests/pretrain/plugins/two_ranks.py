"""One of two gloo ranks, or both in one: `python two_ranks.py RECIPE FOLDER [RANK]` writes losses and gradients of
`Pretraining.compute` to FOLDER/RANK.pt (or one.pt)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_shards.batch import Batch, TextBatch
from data_shards.units import Unit, text_identity
from encoders.tokenize import BPE
from pretrain import build, tiled_loss
from pretrain.config import load_recipe
from pretrain.gathering import Scalars, global_batch
from pretrain.module import Pretraining
from pretrain.objectives.base import UNIT_KINDS, Surroundings
from pretrain.passes import whole
from pretrain.schema import Recipe

# Per study: patient, texts. Rank 0 has the first two studies and three distinct texts, rank 1 the others and five; one
# sentence and one patient are on both.
STUDIES = (
    (1, ("report", "Nodule in the left lung. No effusion."), ("sentence", "No effusion.")),
    (2, ("report", "Nodule in the left lung. No effusion."), ("sentence", "Nodule in the left lung.")),
    (3, ("report", "Large heart. No effusion."), ("sentence", "No effusion."), ("sentence", "Large heart.")),
    (2, ("report", "Cyst of the liver."), ("sentence", "Cyst of the liver.")),
    (4, ("report", "Large heart. No effusion."), ("sentence", "Large heart."), ("sentence", "No effusion.")),
)
# Labels, and what identifies a list of captions: a class on both ranks, something unknown.
NAMES = ("nodule", "effusion")
LABELS = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 0], [0, float("nan")]])
CAPTIONS = torch.tensor([7, 8, 0, 7, 8])
PARTS = {"0": slice(0, 2), "1": slice(2, 5), "one": slice(0, 5)}
UNITS = {"0": 3, "1": 5, "one": 7}  # one sentence is on both ranks
OBJECTIVES = (
    '[{"name": "sentence"}, {"name": "contrastive", "label_smoothing": 0.1}]',
    '[{"name": "sigmoid", "units": ["report", "sentence"]}]',
    '[{"name": "contrastive", "weight": 0.1}, {"name": "attended"}]',
    '[{"name": "hierarchical", "width": 8}]',
    '[{"name": "contrastive", "positives": "own"}, {"name": "contrastive", "positives": "same_label"}]',
    '[{"name": "contrastive", "positives": "soft"}, '
    '{"name": "contrastive", "positives": "same_label_masked", "classes": "captions"}]',
)


def batch(part: slice) -> Batch:
    images = torch.randn(len(STUDIES), 1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    mine = STUDIES[part]
    units = [[Unit(UNIT_KINDS.index(kind), text, text_identity(text)) for kind, text in u] for _, *u in mine]
    texts = TextBatch.of(units, BPE(64))
    rows = torch.arange(len(mine))
    patients = torch.tensor([patient for patient, *_ in mine])
    keys = [str(i) for i in rows]
    return Batch(0, rows, keys, patients, images[part], LABELS[part], NAMES, texts, captions_B=CAPTIONS[part])


@contextmanager
def meeting(folder: Path, rank: str) -> Iterator[None]:
    """A process group of two while the block runs, for ranks "0" and "1"; nothing for "one"."""
    if rank == "one":
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=2)
    yield
    dist.destroy_process_group()


def average(tensors: Iterable[torch.Tensor]) -> None:
    """Over the ranks, in place: what DDP does with gradients."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def make_module(recipe: Recipe, names: tuple[str, ...] = (), *around: Any) -> Pretraining:
    """The recipe's module from seed 0; names of labels, and what else objectives are told besides the model."""
    torch.manual_seed(0)
    dual, objectives = build.build_model(recipe), build.build_objectives(recipe)
    for objective in objectives:
        objective.attach(Surroundings(dual, names, *around))
    return Pretraining(recipe, dual, objectives).train()


def gradients_of(module: Pretraining) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def main(recipe_file: str, folder: Path, rank: str = "one") -> None:
    tiled_loss.TILE = 2  # several tiles, though there are few studies
    results = []
    with meeting(folder, rank):
        for objectives in OBJECTIVES:
            for centred in ("false", "true"):
                words = [f"objectives={objectives}", f"model.centred={centred}", "model.image.token_dropout=0.0"]
                module = make_module(load_recipe(recipe_file, words), NAMES, lambda: LABELS, CAPTIONS.tolist)
                mine = batch(PARTS[rank])
                assert len(mine.texts.lengths) == UNITS[rank]
                loss = module.compute(mine)
                loss.backward()
                gradients = gradients_of(module)
                average(gradients.values())
                one = torch.tensor(1.0)
                with torch.no_grad():
                    rows, kept = module.encoders(module.dual, whole(mine)), frozenset[str]()
                    shared, _ = global_batch(rows, mine, Scalars(one, None), False, kept)
                related = {kind: shared.related_BB((kind,)) for kind in ("report", "sentence")}
                results.append({"loss": loss.detach(), "gradients": gradients, "related": related})
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
