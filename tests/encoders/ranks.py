"""One of two gloo ranks of test_features.py: `python ranks.py RANK FOLDER` writes its gradients to FOLDER/RANK.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from encoders.features import TextFeatures, gather_rows, gather_text
from encoders.stem import Standardise

UNITS = (3, 5)  # what each rank encodes; the ranks share one text
STUDIES = (2, 3)
WIDTH, DIM = 6, 4


def inputs() -> dict[str, Tensor]:
    """The global batch. Unit 1 of rank 0 and unit 0 of rank 1 are one text; unit 4 has its hash and another kind."""
    generator = torch.Generator().manual_seed(0)
    words_UD = torch.randn(8, WIDTH, generator=generator, dtype=torch.float64)
    words_UD[3] = words_UD[1]
    return {
        "images": torch.randn(5, WIDTH, generator=generator, dtype=torch.float64),
        "words": words_UD,
        "hash": torch.tensor([70, -50, 30, -50, -50, 10, 20, 5]),
        "kind": torch.tensor([0, 2, 2, 2, 0, 2, 2, 2], dtype=torch.int8),
        "pair_sample": torch.tensor([0, 0, 1, 2, 3, 3, 4, 2]),
        "pair_unit": torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]),
        "image_weight": torch.randn(WIDTH, DIM, generator=generator, dtype=torch.float64),
        "text_weight": torch.randn(WIDTH, DIM, generator=generator, dtype=torch.float64),
        "volumes": 5 * torch.randn(5, 2, 4, 4, 4, generator=generator) + 1,
    }


def towers(x: dict[str, Tensor], studies: slice, units: slice) -> tuple[Tensor, TextFeatures]:
    """Features of a part of the batch, its studies and units numbered from zero."""
    pair = (x["pair_unit"] >= units.start) & (x["pair_unit"] < units.stop)
    text = TextFeatures(
        x["words"][units] @ x["text_weight"],
        x["kind"][units],
        x["hash"][units],
        x["pair_sample"][pair] - studies.start,
        x["pair_unit"][pair] - units.start,
    )
    return x["images"][studies] @ x["image_weight"], text


def loss(images_BD: Tensor, text: TextFeatures) -> Tensor:
    """A loss that couples every image with every unit of the global batch and does not forgive a wrong pair."""
    logits = images_BD @ torch.nn.functional.normalize(text.units_UD, dim=-1).T
    target = torch.zeros_like(logits)
    target[text.pair_sample_P, text.pair_unit_P] = 1
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target) + logits.logsumexp(1).mean()


def scales(volumes: Tensor) -> dict[str, Tensor]:
    """What a stem takes from its first training batch."""
    layer = Standardise(2).train()
    layer(volumes)
    return layer.state_dict()


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x = inputs()
    weights = [x["image_weight"].requires_grad_(), x["text_weight"].requires_grad_()]
    studies = slice(sum(STUDIES[:rank]), sum(STUDIES[: rank + 1]))
    images, text = towers(x, studies, slice(sum(UNITS[:rank]), sum(UNITS[: rank + 1])))
    together = gather_text(text, STUDIES[rank])
    value = loss(gather_rows(images)[0], together)
    value.backward()
    for weight in weights:  # what DDP does
        dist.all_reduce(weight.grad)
        weight.grad /= 2
    out = {"loss": value.detach(), "units": len(together.units_UD), "pairs": len(together.pair_unit_P)}
    out["scales"] = scales(x["volumes"][studies])
    torch.save({**out, "grads": [weight.grad for weight in weights]}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
