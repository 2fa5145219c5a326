"""InfoNCE between images and texts (CLIP, arXiv 2103.00020, eq. in fig. 3), with several positives a row, and targets
that follow labels (pretrain.targets).

Legend: B studies, L labels, P pairs of a study and one of its texts, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.checks import closest
from pretrain.checks_terms import read_names
from pretrain.errors import ConfigError
from pretrain.objectives.base import GlobalBatch, Objective, Surroundings, pairs_of, texts_of
from pretrain.pairs import Pairs
from pretrain.schema_objectives import BY_LABEL, ContrastiveOptions
from pretrain.soft_nce import soft_nce
from pretrain.targets import ClassTargets, LabelTargets, Targets, class_of
from pretrain.tiled_loss import nce


class Contrastive(Objective):
    """InfoNCE over the global batch with the released logit scale: (to_text · L_image→text + L_text→image) /
    (to_text + 1), symmetric for to_text = 1.

    Sentences want a small `to_text`. Asked which sentences an image has, a softmax over sentences must also say how a
    reader phrased them and how common each phrase is, which no image shows, and it sets synonyms of one finding against
    each other; asked which images have a sentence, its frequency cancels.

    `positives` says which texts of other studies are no mistakes. "own" is the loss of CLIP and of UniMed-CLIP (arXiv
    2412.10372): none, so that captions drawn from a class are negatives of its other images.
    """

    Options = ContrastiveOptions

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        classes = (self.options.classes,) if self.options.positives in BY_LABEL else ()
        return ("image:global.pooled", "text:units.units", "logit_scale", *classes)

    def attach(self, around: Surroundings) -> None:
        """Which columns of the labels count.

        Raises:
            ConfigError: labels or lists of captions that the shards do not have, or of which no two studies share any.
        """
        if self.options.positives not in BY_LABEL:
            return
        if self.options.classes == "captions":
            known = torch.tensor(around.train_captions())
            what = "list of captions"
        else:
            self.columns = label_columns(self.options.labels, around.label_names)
            known, what = class_of(around.train_labels()[:, self.columns]), "known labels"
        counts = torch.bincount(torch.unique(known[known != 0], return_inverse=True)[1])
        if len(known) and not (counts > 1).any():
            raise ConfigError(
                f"contrastive.positives: {self.options.positives}, but no two training studies have the same {what}",
                why="every study would be a class of its own, and this the plain loss under another name",
                fix="positives: same_caption, or other labels (python -m data_shards.inspect lists them)",
            )

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        scale, smoothing, share = batch.logit_scale.exp(), self.options.label_smoothing, self.options.to_text
        if self.options.positives == "same_caption":
            units_UD, pairs = pairs_of(batch, self.options.units)
            to_text, to_image = nce(batch.images_BD, units_UD, scale, pairs, smoothing)
        elif self.options.positives == "own":
            units_UD, pairs = own_pairs(batch, self.options.units)
            to_text, to_image = nce(batch.images_BD, units_UD, scale, pairs, smoothing)
        else:
            units_UD, targets = self.targets(batch)
            to_text, to_image = soft_nce(batch.images_BD, units_UD, scale, targets, smoothing)
        return (share * to_text + to_image) / (share + 1), {"units": torch.tensor(float(len(units_UD)))}

    def targets(self, batch: GlobalBatch) -> tuple[Tensor, Targets]:
        """A text of each pair of study and text [P, D], and the targets that labels or lists of captions make."""
        text = texts_of(batch, self.options.units)
        which = text.pair_sample_P, text.pair_unit_P, batch.patient_B
        targets: Targets
        if self.options.positives == "soft":
            targets = LabelTargets(*which, batch.labels_BL[:, self.columns], self.options.soft_temperature)
        else:
            if self.options.classes == "captions":
                assert batch.captions_B is not None, "the objective reads captions without saying so"
                class_B = batch.captions_B
            else:
                class_B = class_of(batch.labels_BL[:, self.columns])
            targets = ClassTargets(*which, class_B, masked=self.options.positives == "same_label_masked")
        return text.units_UD[targets.text_M], targets


def label_columns(asked: str | tuple[str, ...] | None, have: tuple[str, ...]) -> list[int]:
    """Numbers of the labels that count, of those that the shards have.

    Raises:
        ConfigError: they have none, or not one of those asked for.
    """
    if not have:
        raise ConfigError(
            "contrastive.positives: the shards have no labels",
            why="nothing would say which studies are of one class",
            fix="build them with labels (docs/sources.md), use positives: same_caption, or classes: captions where "
            "every class has its list of captions",
        )
    names = read_names(asked) if isinstance(asked, str) else asked or have
    if strange := [name for name in names if name not in have]:
        raise ConfigError(
            f"contrastive.labels: {', '.join(strange)} no label of the shards",
            why="classes would be told apart by fewer labels than the recipe says",
            fix=closest(strange[0], have) or f"they have {', '.join(have[:8])}",
        )
    return [have.index(name) for name in dict.fromkeys(names)]


def own_pairs(batch: GlobalBatch, kinds: tuple[str, ...]) -> tuple[Tensor, Pairs]:
    """A text of each pair of study and text [P, D], the study's own alone positive, and all others negative: equal
    texts, and those of the same patient, too."""
    text = texts_of(batch, kinds)
    number_P = torch.arange(len(text.pair_unit_P), device=text.pair_unit_P.device)
    nobody_B = torch.arange(len(batch.patient_B), device=number_P.device)
    return text.units_UD[text.pair_unit_P], Pairs.of(text.pair_sample_P, number_P, nobody_B, len(number_P))
