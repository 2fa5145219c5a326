"""What an objective is, and the pairing rules all of them share.

Legend: B studies of the global batch, U its distinct text units, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from data_shards.batch import related
from encoders.features import TextFeatures

Read = Literal["pooled", "units", "tokens", "logit_scale", "logit_bias"]
UNIT_KINDS = ("report", "section", "sentence", "caption")


@dataclass(frozen=True)
class GlobalBatch:
    """Features of the global batch, the same on every rank, unit length, fp32.

    `patient_B` identifies patients across ranks; `logit_scale` is ln of the inverse temperature.
    """

    images_BD: Tensor
    text: TextFeatures
    patient_B: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None

    def related_BB(self, kinds: tuple[str, ...] = UNIT_KINDS) -> Tensor:
        """Studies of one patient, or with one text of these kinds in common, over all sources and ranks: bool,
        symmetric, true on the diagonal. Pairs that are no negatives of each other."""
        text = self.text.only({UNIT_KINDS.index(kind) for kind in kinds})
        return related(self.patient_B, text.pair_sample_P, text.pair_unit_P)


class Objective(nn.Module):
    """One term of the loss: a file in this folder, or anybody's class named by import path.

    Attributes:
        passes: the encoder calls it wants (`image:global`, `text:units`); the module computes the union once.
        reads: what it takes of them.
        coupling: `batch` needs all samples at once, `sample` can be computed chunk by chunk.
        Options: pydantic class of its own recipe keys.

    `forward` returns the loss and what to log. Every rank computes the loss of the whole global batch: the gather sums
    what the ranks say about a row and DDP takes the mean, which together is the gradient of one process.
    """

    passes: ClassVar[tuple[str, ...]] = ("image:global", "text:units")
    reads: ClassVar[tuple[Read, ...]] = ("pooled", "units")
    coupling: ClassVar[Literal["batch", "sample"]] = "batch"
    Options: ClassVar[Any]

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def after_step(self, module: nn.Module) -> None:
        """Called after every optimiser step (teachers, queues)."""

    def released(self) -> dict[str, nn.Module]:
        """Modules of this objective that belong into `heads.safetensors`, by head name (encoders.heads)."""
        return {}


@dataclass(frozen=True)
class Pairing:
    """Which image goes with which unit: `positive_BU`, `negative_BU` (bool). What is neither is left out of every
    sum."""

    units_UD: Tensor
    positive_BU: Tensor
    negative_BU: Tensor


def pairing(batch: GlobalBatch, kinds: tuple[str, ...]) -> Pairing:
    """Pair images with the units of some kinds.

    A text that several studies share is one unit with several positive images, so identical texts are never negatives.
    A unit of another study of the same patient is neither positive nor negative.

    Raises:
        ValueError: the batch has no unit of these kinds.
    """
    text = batch.text.only({UNIT_KINDS.index(kind) for kind in kinds})
    if len(text.units_UD) == 0:
        raise ValueError(
            f"no text unit of kind {', '.join(kinds)} in this batch\n"
            "  why: the objective would train nothing, in silence\n"
            "  fix: switch the unit on in data.units, or change the objective's `units`"
        )
    shape = (len(batch.images_BD), len(text.units_UD))
    positive = torch.zeros(shape, dtype=torch.bool, device=text.units_UD.device)
    positive[text.pair_sample_P, text.pair_unit_P] = True
    same = (batch.patient_B[:, None] == batch.patient_B[None, :]).float()
    kin = (same @ positive.float()) > 0
    return Pairing(text.units_UD, positive, ~kin & ~positive)
