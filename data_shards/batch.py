"""What the stream hands to training: one batch of images, labels and packed text, all tensors.

Shapes: B samples, C channels, D,H,W voxels, L labels, T tokens, U distinct units, P (sample, unit) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from data_shards.schema import UNIT_KINDS
from data_shards.units import Tokenize, Unit, pack
from data_shards.windows import Windows


class _Moves:
    """Move every tensor of a dataclass, and of the dataclasses inside it."""

    def _each(self, move: Any) -> Self:
        changed = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = move(value)
            elif isinstance(value, _Moves):
                changed[item.name] = value._each(move)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        return self._each(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._each(lambda t: t.pin_memory())


@dataclass
class TextBatch(_Moves):
    """Distinct texts of the batch, packed without padding.

    Unit u is tokens_T[cu_seqlens_U1[u] : cu_seqlens_U1[u + 1]], `lengths[u]` tokens; `kind_U` indexes UNIT_KINDS;
    `hash64_U` is equal for equal texts (case and white space aside), `visit64_U` for equal tokens. Pair p: sample
    pair_sample_P[p] has unit pair_unit_P[p]; a text shared by samples is one unit with several pairs.
    """

    tokens_T: Tensor
    cu_seqlens_U1: Tensor
    lengths: list[int]
    kind_U: Tensor
    hash64_U: Tensor
    visit64_U: Tensor
    pair_sample_P: Tensor
    pair_unit_P: Tensor

    @classmethod
    def of(cls, units_of_samples: Sequence[Sequence[Unit]], tokenize: Tokenize) -> TextBatch:
        packed = pack(units_of_samples, tokenize)
        return cls(
            torch.tensor(packed.tokens, dtype=torch.int64),
            torch.from_numpy(np.cumsum([0, *packed.lengths]).astype(np.int32)),
            packed.lengths,
            torch.tensor(packed.kinds, dtype=torch.int8),
            torch.tensor(packed.hashes, dtype=torch.int64),
            torch.tensor(packed.visits, dtype=torch.int64),
            torch.tensor(packed.pair_sample, dtype=torch.int64),
            torch.tensor(packed.pair_unit, dtype=torch.int64),
        )


class Skipped(NamedTuple):
    """A damaged sample whose place another took: its row and (hashed) key, the shard it is in, and what is wrong."""

    row: int
    key: str
    shard: str
    reason: str


@dataclass
class Batch(_Moves):
    """One step's samples on one rank. `images_BCDHW` is B,C,H,W for planar images; a label is NaN where unknown;
    `patient_B` is a 64-bit hash; `rows_B` are row numbers of the shard set and `keys` their (hashed) keys.
    `skipped`: damaged samples that were drawn for this batch and are not in it. `captions_B` is equal for samples that
    have the same captions stored, 0 for those that have none. With `windows`, `images_BCDHW` holds the values of scans,
    float16 in their unit and a channel a scan; `images` makes the windows of them."""

    step: int
    rows_B: Tensor
    keys: list[str]
    patient_B: Tensor
    images_BCDHW: Tensor
    labels_BL: Tensor
    label_names: tuple[str, ...]
    texts: TextBatch
    skipped: tuple[Skipped, ...] = ()
    captions_B: Tensor | None = None
    windows: Windows | None = None

    def images(self, studies: slice = slice(None)) -> Tensor:
        """What an encoder sees of some studies: [b, C, (D,) H, W] float32."""
        found = self.images_BCDHW[studies]
        return found if self.windows is None else self.windows(found)

    def __len__(self) -> int:
        return len(self.keys)

    def related_BB(self, kinds: Sequence[str] = UNIT_KINDS) -> Tensor:
        """Samples of one patient or with one text of these kinds in common: bool, symmetric, true on the diagonal."""
        keep_U = torch.isin(self.texts.kind_U, torch.tensor([UNIT_KINDS.index(k) for k in kinds], dtype=torch.int8))
        keep_P = keep_U[self.texts.pair_unit_P]
        pairs = self.texts.pair_sample_P[keep_P], self.texts.pair_unit_P[keep_P]
        return related(self.patient_B, *pairs)


def related(patient_B: Tensor, pair_sample_P: Tensor, pair_unit_P: Tensor) -> Tensor:
    """Which samples have the patient or one of the texts of which other: bool (B, B). A pair says that a sample has a
    text; equal texts must be one text already, as in a batch and after `encoders.features.gather_text`."""
    has_BU = torch.zeros(len(patient_B), int(pair_unit_P.max()) + 1 if len(pair_unit_P) else 0, device=patient_B.device)
    has_BU[pair_sample_P, pair_unit_P] = 1
    return (patient_B[:, None] == patient_B[None, :]) | (has_BU @ has_BU.T > 0)
