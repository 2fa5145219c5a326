"""Multi-label classification beside the contrast (Merlin, arXiv 2406.06512: binary cross-entropy on 1,692 phenotypes).

Per study and label, z the logit of a linear head on the trunk's features:

    loss = -w y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)),   w = min(pos_weight, absent / present studies), or 1

and the mean over all known pairs of the global batch; unknown labels are masked, never 0. With a hierarchy a code is
present wherever one below it is. Absence is not propagated: without a kidney stone there may be another finding of the
kidney. A code that the shards have no label for is absent where all labels below it are known to be.

Legend: B studies, b studies of a part, R training studies, L labels of the shards, K labels of the head, P pairs of a
label of the head and one of the shards below it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.batch import Batch
from encoders.features import rank
from encoders.heads.labels import LabelHead
from pretrain.checks import closest
from pretrain.checks_terms import read_names
from pretrain.errors import ConfigError
from pretrain.hierarchy import Hierarchy, read_hierarchy
from pretrain.objectives.base import Objective, Surroundings
from pretrain.passes import Part, Rows
from pretrain.schema_objectives import LabelsOptions

TRUNK = "image:global.trunk"
SHOWN = 5


class Targets(nn.Module):
    """Labels of shards [B, L] to those of a head [B, K]: 1, 0, NaN where unknown.

    Args:
        columns: names of the L labels. names: of the K. below: code -> labels under it.
    """

    def __init__(self, columns: Sequence[str], names: Sequence[str], below: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        number = {name: i for i, name in enumerate(columns)}
        pairs = [(k, number[code]) for k, name in enumerate(names) for code in below.get(name, ())]
        above_P, below_P = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
        self.register_buffer("above_P", above_P.contiguous(), persistent=False)
        self.register_buffer("below_P", below_P.contiguous(), persistent=False)
        self.register_buffer("own_K", torch.tensor([number.get(name, -1) for name in names]), persistent=False)
        self.above_P: Tensor
        self.below_P: Tensor
        self.own_K: Tensor

    def forward(self, labels_BL: Tensor) -> Tensor:
        present_BK, unknown_BK = (self._any_below(one) for one in (labels_BL == 1, labels_BL.isnan()))
        derived_BK = torch.zeros_like(present_BK, dtype=labels_BL.dtype).masked_fill(unknown_BK, float("nan"))
        own_BK = labels_BL[:, self.own_K.clamp(min=0)]
        return torch.where(self.own_K >= 0, own_BK, derived_BK).masked_fill(present_BK, 1.0)

    def _any_below(self, is_BL: Tensor) -> Tensor:
        counts_BK = torch.zeros(len(is_BL), len(self.own_K), device=is_BL.device)
        return counts_BK.index_add_(1, self.above_P, is_BL[:, self.below_P].float()) > 0


class Labels(Objective):
    """Known labels, each study by itself; the head is released as `labels`."""

    reads = (TRUNK, "labels")
    coupling = "sample"
    Options = LabelsOptions

    def attach(self, around: Surroundings) -> None:
        """Which labels there are to learn, and the head.

        Raises:
            ConfigError: an image tower without trunk features, a name that is no label, a hierarchy that has nothing to
                do with the labels, or no label with enough positives.
        """
        trunk = getattr(around.dual.clip.visual, "trunk", None)
        if trunk is None:
            raise ConfigError(
                "labels: this image tower gives no features before its projection",
                why="the head is linear on them",
                fix="use a timm name or one of ours (voxvit, i3d) for model.image.name",
            )
        names, below = self._names(around.label_names)
        targets = Targets(around.label_names, names, below)
        known_RK = targets(around.train_labels())
        present_K, absent_K = (known_RK == 1).sum(0), (known_RK == 0).sum(0)
        enough = present_K >= self.options.min_positives
        if not enough.any():
            raise ConfigError(
                f"labels: none of {len(names)} labels is present in {self.options.min_positives} training studies",
                why="there would be nothing to learn",
                fix="lower min_positives, or look at the labels: python -m data_shards.inspect",
            )
        if not enough.all() and rank() == 0:
            few = int((~enough).sum())
            print(
                f"labels: {few} of {len(names)} are present in fewer than {self.options.min_positives} training "
                "studies (min_positives) and are left out",
                file=sys.stderr,
            )
        kept = [name for name, one in zip(names, enough.tolist(), strict=True) if one]
        self.targets = Targets(around.label_names, kept, below)
        weight_K = torch.ones(len(kept))
        if self.options.pos_weight is not None:
            weight_K = (absent_K[enough] / present_K[enough]).clamp(1.0, self.options.pos_weight)
        self.register_buffer("weight_K", weight_K, persistent=False)
        self.weight_K: Tensor
        self.head = LabelHead(int(getattr(trunk, "head_hidden_size", None) or trunk.num_features), kept)

    def _names(self, have: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, list[str]]]:
        """Names of the head's labels, and the labels of the shards under each."""
        asked = self.options.names
        if not have:
            raise ConfigError(
                "labels: the shard set has no labels",
                why="there would be nothing to learn",
                fix="build the shards with labels (docs/sources.md), or take the objective out",
            )
        below = (read_hierarchy(self.options.hierarchy) if self.options.hierarchy else Hierarchy({})).below(have)
        if self.options.hierarchy and not below:
            raise ConfigError(
                f"labels.hierarchy: none of its codes is a label of the shards ({_some(have)})",
                why="nothing would be propagated, in silence",
                fix="write codes as the shards do",
            )
        names = read_names(asked) if isinstance(asked, str) else asked
        if names is None:
            return (*have, *sorted(below.keys() - set(have))), below
        if strange := [name for name in names if name not in have and name not in below]:
            hint = closest(strange[0], (*have, *below))
            raise ConfigError(
                f"labels.names: {len(strange)} of {len(names)} are no labels of the shards, nor above any in the "
                f"hierarchy: {_some(strange)}",
                why="they would be learnt from nothing",
                fix=hint or f"the shards have {_some(have)}",
            )
        return tuple(dict.fromkeys(names)), below

    def terms(self, batch: Batch) -> Tensor:
        return self.targets(batch.labels_BL).isfinite().sum()

    def each(self, rows: Mapping[str, Rows], part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        trunk = rows[TRUNK]
        wanted_bK = self.targets(part.batch.labels_BL[trunk.owner])
        with torch.autocast(trunk.values.device.type, enabled=False):
            logits_bK = self.head(trunk.values.float())
            known_bK = wanted_bK.isfinite()
            loss_bK = F.binary_cross_entropy_with_logits(
                logits_bK, wanted_bK.nan_to_num(), pos_weight=self.weight_K, reduction="none"
            )
            right_bK = (logits_bK > 0) == (wanted_bK == 1)
        return (loss_bK * known_bK).sum(), {"accuracy": (right_bK & known_bK).sum()}

    def released(self) -> dict[str, nn.Module]:
        return {"labels": self.head}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
