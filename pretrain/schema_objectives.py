"""Options of the objectives that come with this package, by name. Pure pydantic, no torch; objectives of others are
checked by their own class after torch is imported."""

from __future__ import annotations

from typing import Literal

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


OBJECTIVE_OPTIONS: dict[str, type[Section]] = {
    "contrastive": ContrastiveOptions,
    "sigmoid": SigmoidOptions,
    "sentence": SentenceOptions,
    "hierarchical": HierarchicalOptions,
}
