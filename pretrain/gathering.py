"""This rank's features to those of the global batch, the same on every rank.

Legend: B studies of the global batch, U its distinct units, D joint width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.batch import Batch
from encoders.features import TextFeatures, gather_rows, gather_text, rank
from pretrain.centring import centred
from pretrain.objectives.base import GlobalBatch
from pretrain.passes import Rows

POOLED, UNITS = "image:global.pooled", "text:units.units"


@dataclass(frozen=True)
class Scalars:
    """The dual encoder's own temperature and bias, with gradient."""

    logit_scale: Tensor
    logit_bias: Tensor | None


def global_batch(
    rows: Mapping[str, Rows],
    batch: Batch,
    scalars: Scalars,
    centre: bool,
    read: frozenset[str],
) -> tuple[GlobalBatch, dict[str, Tensor]]:
    """Gather the fields `read`; joint features in fp32 and of unit length, duplicate texts merged.

    With `centre` the mean of the global batch is subtracted before (pretrain.centring); the means [D] are returned as
    well, of the towers ("image", "text") whose features were read.
    """
    images = text = None
    means: dict[str, Tensor] = {}
    if POOLED in rows:
        images = gather_rows(rows[POOLED].values.float())[0]
        images, means["image"] = _centred(images, centre)
        images = F.normalize(images, dim=-1)
    if UNITS in rows:
        told = batch.texts
        text = TextFeatures(
            rows[UNITS].values.float(), told.kind_U, told.hash64_U, told.pair_sample_P, told.pair_unit_P
        )
        text = gather_text(text, len(batch))
        units = text.units_UD
        if len(units):  # of no text there is no mean
            units, means["text"] = _centred(units, centre)
        text = TextFeatures(
            F.normalize(units, dim=-1), text.kind_U, text.hash64_U, text.pair_sample_P, text.pair_unit_P
        )
    patients, counts = gather_rows(batch.patient_B)
    first = sum(counts[: rank()])
    told_P3 = None
    if text is None:
        words, unit = batch.texts, batch.texts.pair_unit_P
        kinds = words.kind_U[unit].to(words.hash64_U.dtype)
        told_P3 = gather_rows(torch.stack([words.pair_sample_P + first, words.hash64_U[unit], kinds], 1))[0]
    others = {
        name: gathered(one, first)
        for name, one in sorted(rows.items())  # one order of collective calls on every rank
        if name in read - {POOLED, UNITS}
    }
    labels = gather_rows(batch.labels_BL)[0] if batch.label_names else batch.labels_BL
    captions = None
    if "captions" in read:
        assert batch.captions_B is not None, "a stream says which list of captions every study has"
        captions = gather_rows(batch.captions_B)[0]
    shared = GlobalBatch(
        images, text, patients, scalars.logit_scale, scalars.logit_bias, labels, batch.label_names, others,
        counts=tuple(counts), told_P3=told_P3, captions_B=captions,
    )  # fmt: skip
    return shared, means


def gathered(one: Rows, first: int) -> Rows:
    """Rows of all ranks, with gradient, owners numbered over them. first: number of this rank's first study."""
    return Rows(gather_rows(one.values)[0], gather_rows(one.owner + first)[0], one.grid)


def _centred(x: Tensor, centre: bool) -> tuple[Tensor, Tensor]:
    moved, mean = centred(x)
    return (moved if centre else x), mean
