"""What an objective is, and the pairing rules all of them share.

Legend: B studies of the global batch, U its distinct text units, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from data_shards.batch import Batch, related
from encoders.dual import DualEncoder
from encoders.features import TextFeatures, rank
from pretrain.errors import ConfigError
from pretrain.pairs import Pairs
from pretrain.passes import Part, Pass, Rows

UNIT_KINDS = ("report", "section", "sentence", "caption")
COUPLINGS = ("batch", "sample", "image", "pair")


@dataclass(frozen=True)
class GlobalBatch:
    """What objectives read of the global batch, the same on every rank.

    `image_BD` and `units_UD` are of unit length and fp32; fields that no objective reads are None or not in `rows`.
    `patient_B` identifies patients across ranks; `labels_BL` is NaN where unknown; `captions_B` identifies the list
    of a study's stored captions, 0 for none, and is None where no objective reads it; `logit_scale` is ln of the
    inverse temperature; `rows` has every other field by its name, owners numbered over ranks; `counts` are the studies
    of each rank. Where no objective reads texts, `told_P3` still says which studies have which: study, hash and
    kind of every text.
    """

    image_BD: Tensor | None
    texts: TextFeatures | None
    patient_B: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None
    labels_BL: Tensor
    label_names: tuple[str, ...]
    rows: Mapping[str, Rows]
    counts: tuple[int, ...] = ()
    told_P3: Tensor | None = None
    captions_B: Tensor | None = None
    _once: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, who: object, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all parts of the batch. who: asks for it, and for nothing else."""
        if who not in self._once:
            self._once[who] = make()
        return self._once[who]

    @property
    def first(self) -> int:
        """Number of this rank's first study."""
        return sum(self.counts[: rank()])

    @property
    def rank_B(self) -> Tensor:
        """The rank that each study came from."""
        counts = torch.tensor(self.counts or (len(self.patient_B),), device=self.patient_B.device)
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    @property
    def images_BD(self) -> Tensor:
        assert self.image_BD is not None, "the objective reads image:global.pooled without saying so"
        return self.image_BD

    @property
    def text(self) -> TextFeatures:
        assert self.texts is not None, "the objective reads text:units.units without saying so"
        return self.texts

    def related_BB(self, kinds: tuple[str, ...] = UNIT_KINDS) -> Tensor:
        """Studies of one patient, or with one text of these kinds in common, over all sources and ranks: bool,
        symmetric, true on the diagonal. Pairs that are no negatives of each other."""
        numbers = {UNIT_KINDS.index(kind) for kind in kinds}
        if self.told_P3 is None:
            text = self.text.only(numbers)
            return related(self.patient_B, text.pair_sample_P, text.pair_unit_P)
        told_P3 = self.told_P3[torch.isin(self.told_P3[:, 2], torch.tensor(sorted(numbers)).to(self.told_P3))]
        return related(self.patient_B, told_P3[:, 0], torch.unique(told_P3[:, 1:], dim=0, return_inverse=True)[1])


@dataclass(frozen=True)
class Surroundings:
    """What an objective may know before training: the dual encoder, what the shards call their labels, and on request
    the labels of the training studies, [R, L], NaN where unknown, what identifies the lists of captions of some of
    them, 0 for none, and all objectives of the recipe."""

    dual: DualEncoder
    label_names: tuple[str, ...]
    train_labels: Callable[[], Tensor] = lambda: torch.empty(0, 0)
    train_captions: Callable[[], list[int]] = list
    objectives: Iterable[nn.Module] = ()

    @property
    def embed_dim(self) -> int:
        """D, of the joint space."""
        return int(self.dual.model_cfg["embed_dim"])

    @property
    def trunk_width(self) -> int:
        """C, of the image tower's tokens and of its features before the projection.

        Raises:
            ConfigError: a tower that says neither.
        """
        trunk = getattr(self.dual.clip.visual, "trunk", None)
        if trunk is None:
            raise ConfigError(
                "model.image.name: an objective reads tokens or trunk features, which this tower does not give",
                why="there would be nothing to train on",
                fix="use a voxvit or another timm tower",
            )
        return int(trunk.num_features)


class NoUnits(ValueError):
    """The batch has no text of the kinds that an objective compares with. Where batches about one section alternate
    with whole reports (`data.units.alternate`) that is as it should be, and the term is 0 in this step."""


class Objective(nn.Module):
    """One term of the loss: a file in this folder, or anybody's class named by import path.

    Attributes:
        reads: fields of passes it takes (`image:global.pooled`: pretrain.passes), and of `labels`, `captions`,
            `logit_scale`, `logit_bias` and the layers of `dual.report` (`report_fusion`, `report_matching`,
            `report_vocabulary`) those it takes. Where it depends on the options, a property of that name.
        coupling: how its loss hangs together, which decides what `train.chunk` keeps and ranks exchange.
            `batch`: all studies at once: `forward`.
            `sample`: a sum over studies, each by itself: `terms` and `each`, part by part.
            `image`: a sum over images, each against texts of the whole global batch: `terms` and `of_images`, part by
            part. What it reads of images is neither kept nor gathered, but for pooled features; those of other images
            have no gradient.
            `pair`: a loss of the matrix of what every image and every text come to, however many places of the image
            that takes: `scores`, part by part, and `of_scores`, at once. The matrix is kept and gathered.
            Of passes `image` and `pair` read fields of images, `text:units.units` and fields of `report:units` alone.
        Options: pydantic class of its own recipe keys.

    `forward` and `of_scores` return the loss of the whole global batch, on every rank, and what to log: the gather sums
    what the ranks say about a row and DDP takes the mean, which together is the gradient of one process.
    """

    reads: ClassVar[tuple[str, ...]] = ("image:global.pooled", "text:units.units")
    coupling: ClassVar[Literal["batch", "sample", "image", "pair"]] = "batch"
    Options: ClassVar[Any]

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options

    def attach(self, around: Surroundings) -> None:
        """Make the modules whose size depends on towers or data. Called once, before training. Raises ConfigError where
        they do not fit."""

    def passes(self) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
        """Encoder calls of its own: name -> (pass, the fields it offers). Other objectives may read them too."""
        return {}

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of coupling `batch`: loss of the global batch, a scalar, and what to log."""
        raise NotImplementedError

    def terms(self, batch: Batch) -> Tensor:
        """Of couplings `sample` and `image`: how many terms this rank's batch has. The loss is the sum of all ranks'
        terms over their number, which is known before any forward pass, so that parts add up exactly."""
        return torch.tensor(float(len(batch)))

    def each(self, rows: Mapping[str, Rows], part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """Of coupling `sample`: the sum of the terms of some studies, and sums to log."""
        raise NotImplementedError

    def of_images(self, rows: Mapping[str, Rows], part: Part, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of coupling `image`: the sum of the terms of the images of some studies, and sums to log. `rows` has fields
        of images, owners numbered in this rank's batch; everything else is the global batch's."""
        raise NotImplementedError

    def scores(self, rows: Mapping[str, Rows], batch: GlobalBatch) -> Rows:
        """Of coupling `pair`: what some images come to against all texts, [S, R], with the images' studies in this
        rank's batch; R is the same on every rank. `rows` has fields of these images; of the global batch only texts are
        known. Draws nothing."""
        raise NotImplementedError

    def of_scores(self, scores: Rows, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of coupling `pair`: loss of the scores of all images, owners numbered over ranks, and what to log."""
        raise NotImplementedError

    def after_step(self, module: nn.Module) -> None:
        """Called after every optimiser step (teachers, queues), also while the objective rests (its schedule)."""

    def released(self) -> dict[str, nn.Module]:
        """Modules of this objective that belong into `heads.safetensors`, by head name (encoders.heads)."""
        return {}


def texts_of(batch: GlobalBatch, kinds: tuple[str, ...]) -> TextFeatures:
    """The units of some kinds.

    Raises:
        NoUnits: the batch has none.
    """
    text = batch.text.only({UNIT_KINDS.index(kind) for kind in kinds})
    if len(text.units_UD) == 0:
        raise NoUnits(
            f"no text unit of kind {', '.join(kinds)} in this batch\n"
            "  why: the objective would train nothing, in silence\n"
            "  fix: switch the unit on in data.units, or change the objective's `units`"
        )
    return text


def pairs_of(batch: GlobalBatch, kinds: tuple[str, ...]) -> tuple[Tensor, Pairs]:
    """Units of some kinds [U, D], and which image goes with which.

    A text that several studies share is one unit with several positive images, so identical texts are never negatives.
    A unit of another study of the same patient is neither positive nor negative.

    Studies without a unit of these kinds have no positive; units of others are negatives of theirs.

    Raises:
        NoUnits: the batch has no unit of these kinds.
    """
    text = texts_of(batch, kinds)
    return text.units_UD, Pairs.of(text.pair_sample_P, text.pair_unit_P, batch.patient_B, len(text.units_UD))


@dataclass(frozen=True)
class Pairing:
    """Which image goes with which unit: `positive_BU`, `negative_BU` (bool). What is neither is left out of every
    sum. Masks of all pairs, for objectives whose formula needs every pair; `pairs_of` says the same in lists."""

    units_UD: Tensor
    positive_BU: Tensor
    negative_BU: Tensor


def pairing(batch: GlobalBatch, kinds: tuple[str, ...]) -> Pairing:
    """Pair images with the units of some kinds by the rules of `pairs_of`."""
    units_UD, pairs = pairs_of(batch, kinds)
    return Pairing(units_UD, *pairs.dense())
