"""Options of the objectives that come with this package, by name. Pure pydantic, no torch; objectives of others are
checked by their own class after torch is imported."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pretrain.schema_base import Section, Unit

Positives = Literal["own", "same_caption", "same_label", "same_label_masked", "soft"]
BY_LABEL = ("same_label", "same_label_masked", "soft")  # positives that ask for labels, or for lists of captions


class ContrastiveOptions(Section):
    """InfoNCE over all ranks; identical texts and same patients are never negatives (but with positives: own)."""

    units: tuple[Unit, ...] = Field(("report",), min_length=1, description="kinds of text compared with the image")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="smoothing of the targets")
    to_text: float = Field(1.0, ge=0.0, description="share of the direction image to text, beside 1 for text to image")
    positives: Positives = Field(
        "same_caption",
        description="no negatives are: its own text alone (CLIP); equal texts; those of its class, as positives "
        "(UniCL) or left out (masked); or all count by the similarity of labels (MedCLIP)",
    )
    classes: Literal["labels", "captions"] = Field(
        "labels", description="same_label: studies of a class have the same known labels, or the same list of captions"
    )
    labels: str | tuple[str, ...] | None = Field(
        None, min_length=1, description="labels that count: a list, or a file with one a line; null: all of the shards"
    )
    soft_temperature: float = Field(
        0.1, gt=0.0, description="soft: divides similarities; MedCLIP's 1 spreads targets almost evenly over a batch"
    )


class SigmoidOptions(Section):
    """Pairwise sigmoid (SigLIP) over all ranks, with the same exclusions."""

    units: tuple[Unit, ...] = Field(("report",), min_length=1, description="kinds of text compared with the image")
    init_bias: float = Field(-10.0, description="logit bias at the start")


class SentenceOptions(Section):
    """Each image against every distinct sentence of the global batch, several positives, sigmoid."""

    units: tuple[Unit, ...] = Field(("sentence",), min_length=1, description="kinds of text that count as sentences")
    init_bias: float = Field(-2.5, description="logit bias at the start: log-odds of a pair being positive")


class AttendedOptions(Section):
    """Each text pools the tokens of each image by attention; all pairs of the global batch, sigmoid."""

    units: tuple[Unit, ...] = Field(("sentence",), min_length=1, description="kinds of text that look at the image")
    heads: int = Field(4, gt=0, description="attention heads; must divide model.embed_dim")
    init_bias: float = Field(-2.5, description="logit bias at the start: log-odds of a pair being positive")


class ViewOptions(Section):
    """Two augmented views of every image, shared by all objectives that read them (pretrain.views)."""

    max_drop: float = Field(0.3, gt=0.0, lt=1.0, description="most of an image that blocks cover, as a share")
    block: float = Field(0.25, gt=0.0, le=1.0, description="longest side of a block, as a share of the image's")


class SimCLROptions(ViewOptions):
    """Two views of one image against those of all others (NT-Xent) over all ranks, with the same exclusions."""

    temperature: float = Field(0.5, gt=0.0, description="divides the cosines")
    dim: int = Field(512, gt=0, description="width of the projection")
    hidden: int | None = Field(None, gt=0, description="width of a hidden layer before it; null for a linear one")


class RotationOptions(ViewOptions):
    """Which quarter turn an image was given."""


class InpaintingOptions(ViewOptions):
    """What was there before blocks were cut out."""

    over: Literal["dropped", "all"] = Field("dropped", description="voxels compared: dropped, or all as in SwinUNETR")


class LabelsOptions(Section):
    """Binary cross-entropy of every known label, on the image tower's features before the projection."""

    names: str | tuple[str, ...] | None = Field(
        None, min_length=1, description="labels to learn: a list, or a file with one a line; null: all of the shards"
    )
    hierarchy: str | None = Field(
        None, min_length=1, description="CSV of child,parent: a code is present where one below it is"
    )
    min_positives: int = Field(1, ge=1, description="training studies a label must be present in to be learnt")
    pos_weight: float | None = Field(
        None, ge=1.0, description="presence weighs absent / present studies of its label, at most this; null: 1"
    )


class ReportContrastiveOptions(Section):
    """InfoNCE between images and whole reports as the report transformer reads them (VELVET-Med's L_report)."""

    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="smoothing of the targets")
    init_temperature: float = Field(0.07, gt=0.01, description="temperature at the start; learnt")
    gather: bool = Field(True, description="negatives of all ranks; false: of the study's own rank, as published")
    exclude_related: bool = Field(True, description="one text or one patient is no negative; false: as published")


class HierarchicalOptions(Section):
    """Sentences or words against places of the image (GLoRIA, VELVET-Med's L_local)."""

    text: Literal["units", "sentences", "words"] = Field(
        "units", description="the dual encoder's units, or sentences or words as model.report reads them"
    )
    units: tuple[Unit, ...] = Field(("sentence",), min_length=1, description="with text: units, kinds of text")
    level: int | None = Field(None, ge=0, le=3, description="map of the image tower, 0 the finest; null for its tokens")
    width: int = Field(512, gt=0, description="of the space that places and texts are compared in")
    attention_temperature: float = Field(4.0, gt=0.0, le=40.0, description="of the attention over places")
    pooling_temperature: float = Field(5.0, gt=0.0, le=40.0, description="of the sum over a text's units")
    temperature: float = Field(10.0, gt=0.0, description="of the cross-entropy over the batch")
    gather: bool = Field(True, description="negatives of all ranks; false: of the study's own rank, as published")
    exclude_related: bool = Field(True, description="one text or one patient is no negative; false: as published")


class MatchingOptions(Section):
    """Does the text belong to the image? Each with its own partner, a hard text and a hard image."""

    temperature: float = Field(0.07, gt=0.0, description="of the similarities that hard negatives are drawn by")
    gather: bool = Field(True, description="negatives of all ranks; false: of the study's own rank, as published")
    exclude_related: bool = Field(True, description="one text or one patient is no negative; false: as published")


class MaskedLanguageOptions(Section):
    """15 % of a report's tokens are hidden and predicted."""

    condition: Literal["text", "image"] = Field("text", description="of the rest of the report, or of the image too")


class MaskedImageOptions(Section):
    """Voxels of the patches that token dropout took, predicted from the kept tokens of the same pass (MAE)."""

    width: int = Field(192, gt=0, multiple_of=96, description="width of the decoder, a multiple of 96")
    blocks: int = Field(1, ge=1, le=8, description="transformer blocks of the decoder")
    normalise: bool = Field(True, description="each window of a patch to mean 0 and variance 1")


class DistillationOptions(Section):
    """An average of the image tower sees the whole image; the tower, with tokens dropped, predicts its feature."""

    momentum: float = Field(0.99, ge=0.0, lt=1.0, description="of the moving average at the start; 1 at the end")
    width: int = Field(512, gt=0, description="hidden width of the predictor")


OBJECTIVE_OPTIONS: dict[str, type[Section]] = {
    "contrastive": ContrastiveOptions,
    "sigmoid": SigmoidOptions,
    "sentence": SentenceOptions,
    "attended": AttendedOptions,
    "simclr": SimCLROptions,
    "rotation": RotationOptions,
    "inpainting": InpaintingOptions,
    "labels": LabelsOptions,
    "report_contrastive": ReportContrastiveOptions,
    "matching": MatchingOptions,
    "masked_language": MaskedLanguageOptions,
    "hierarchical": HierarchicalOptions,
    "masked_image": MaskedImageOptions,
    "distillation": DistillationOptions,
}
