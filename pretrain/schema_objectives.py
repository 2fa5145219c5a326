"""Options of the objectives that come with this package, by name. Pure pydantic, no torch; objectives of others are
checked by their own class after torch is imported."""

from __future__ import annotations

from pydantic import Field

from pretrain.schema_base import Section, Unit


class ContrastiveOptions(Section):
    """InfoNCE over all ranks; identical texts and same patients are never negatives."""

    units: tuple[Unit, ...] = Field(("report",), min_length=1, description="kinds of text compared with the image")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="smoothing of the targets")
    to_text: float = Field(1.0, ge=0.0, description="share of the direction image to text, beside 1 for text to image")


class SigmoidOptions(Section):
    """Pairwise sigmoid (SigLIP) over all ranks, with the same exclusions."""

    units: tuple[Unit, ...] = Field(("report",), min_length=1, description="kinds of text compared with the image")
    init_bias: float = Field(-10.0, description="logit bias at the start")


class SentenceOptions(Section):
    """Each image against every distinct sentence of the global batch, several positives, sigmoid."""

    units: tuple[Unit, ...] = Field(("sentence",), min_length=1, description="kinds of text that count as sentences")
    init_bias: float = Field(-2.5, description="logit bias at the start: log-odds of a pair being positive")


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
    "masked_image": MaskedImageOptions,
    "distillation": DistillationOptions,
}
