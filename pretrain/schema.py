"""The recipe: every key a YAML file may hold, its type, default and meaning.

Pure pydantic, no torch, so that a mistake answers at once. Unknown keys are errors everywhere; an objective's own
options are checked against its Options class. Sizes and spacings are always (depth, height, width). `pretrain.config`
reads a file into a Recipe, `pretrain.checks` holds what needs two sections at once, and
`pretrain.schema_data` and `pretrain.schema_finish` the sections of these names.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from pretrain.schema_base import Fraction, Path, Section
from pretrain.schema_data import DataSection
from pretrain.schema_finish import FinishSection

# ------------------------------------------------------------------------------------------------------------ model


class ImageTower(Section):
    """The image encoder."""

    name: str = Field(
        min_length=1,
        description="voxvit_*, i3d_* or swin3d_* with a tag, for volumes; a timm or open_clip name, for images",
    )
    token_dropout: Fraction = Field(0.0, lt=1.0, description="fraction of patch tokens dropped in training")
    token_dropout_finish: Fraction = Field(
        0.0, lt=1.0, description="share of the run's steps, the last ones, that drop none"
    )
    grad_checkpointing: bool = Field(False, description="recompute activations: less memory, about a third slower")
    pretrained: bool | str = Field(
        False, description="start from weights: true for timm's own; an open_clip name's tag, or a file of its weights"
    )
    inflate: str | None = Field(
        None, min_length=1, description="start a tower for volumes from 2D weights: a file, or a timm name"
    )
    batch_norm: Literal["batch", "frozen", "group"] = Field(
        "batch", description="BatchNorm: as it is, with fixed statistics, or GroupNorm in its place (i3d)"
    )
    pretrained_file: str | None = Field(
        None, description="start from a file: timm's towers of images, and swin3d (MONAI's)"
    )
    image_size: int = Field(224, gt=0, description="number open_clip stores; the real volume size is in the tag")


class TextTower(Section):
    """The text encoder: open_clip's BPE and a causal transformer, or a Hugging Face model by name."""

    width: int = Field(192, gt=0, description="model width")
    layers: int = Field(4, gt=0, description="transformer blocks")
    heads: int = Field(4, gt=0, description="attention heads; must divide width")
    context_length: int = Field(256, ge=8, description="longest unit in tokens; longer ones are cut")
    vocab_size: int = Field(49408, gt=0, description="entries of the tokenizer")
    hf_name: str | None = Field(None, description="Hugging Face model instead of the native tower")
    cached: int | None = Field(
        None, ge=1, description="frozen tower (optim.lr_multipliers.text: 0): embed so many variants of each text once"
    )
    hf_pooler: Literal["cls_pooler", "cls_last_hidden_state_pooler", "mean_pooler"] = Field(
        "cls_pooler", description="with hf_name: the model's own pooler, its first token, or the mean of its tokens"
    )
    hf_proj: Literal["mlp", "linear"] = Field("mlp", description="with hf_name: layers from its width to embed_dim")
    hf_wordpunct: bool = Field(
        False, description="with hf_name: lower case, words and punctuation apart, as Merlin writes texts"
    )


class ReportSection(Section):
    """A report transformer (TriBERT) beside the dual encoder. The defaults are for two cores; VELVET-Med has 768, 6,
    12, 6, 3072."""

    width: int = Field(192, gt=0, description="model width")
    heads: int = Field(4, gt=0, description="attention heads; must divide width")
    layers: int = Field(4, gt=0, description="layers that read the report")
    fusion_layers: int = Field(2, ge=0, description="layers after them that look at the image; 0 for none")
    feedforward: int = Field(768, gt=0, description="width of the feed-forward layers")
    max_sentences: int = Field(50, gt=0, description="sentences read of a report; further ones are left out")
    max_tokens: int = Field(512, ge=3, description="tokens read of a report, its own and one a sentence included")
    dropout: Fraction = Field(0.1, lt=1.0, description="dropout after attention and feed-forward")
    grad_checkpointing: bool = Field(False, description="recompute activations: less memory, about a third slower")


class ModelSection(Section):
    """The dual encoder."""

    image: ImageTower = Field(description="image tower")
    text: TextTower | None = Field(
        TextTower(), description="text tower; null for none: the image tower is trained alone and released for timm"
    )
    report: ReportSection | None = Field(None, description="transformer that reads whole reports; null for none")
    embed_dim: int = Field(256, gt=0, description="dimension of the joint space")
    init_logit_scale: float = Field(
        math.log(1 / 0.07), ge=0.0, le=math.log(100.0), description="ln of the inverse temperature at the start"
    )
    centred: bool = Field(False, description="subtract the batch mean from embeddings in training (pretrain.centring)")
    init: str | None = Field(None, description="release folder to start from")
    pretrained: str | None = Field(
        None, min_length=1, description="both towers from open_clip's weights for image.name: a tag of it, or a file"
    )


# ------------------------------------------------------------------------------------------------------- objectives

Factor = Annotated[float, Field(ge=0.0)]


class ObjectiveSection(BaseModel):
    """One term of the loss. Keys beside name, weight and schedule are the objective's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, description="a built-in (docs/objectives.md), or package.module:Class")
    weight: float = Field(1.0, ge=0.0, description="factor of this term in the summed loss")
    schedule: tuple[tuple[Fraction, Factor], ...] | None = Field(
        None,
        min_length=1,
        description="[from, factor] pairs: from this share of the run on, weight is multiplied by factor; 0 before the "
        "first, and where it is 0 the term rests; null: 1 all along",
    )

    def factor(self, step: int, steps: int) -> float:
        """What `weight` is multiplied by in optimiser step `step` of a run of `steps`; 0: the term is not computed."""
        return self._last(lambda share: step >= round(share * steps))

    def factor_at(self, share: float) -> float:
        """The same at a share of the run."""
        return self._last(lambda start: share >= start)

    def _last(self, has_begun: Callable[[float], bool]) -> float:
        if self.schedule is None:
            return 1.0
        return next((factor for share, factor in reversed(self.schedule) if has_begun(share)), 0.0)

    @property
    def options(self) -> dict[str, Any]:
        """The objective's own keys, as written in the recipe."""
        return dict(self.model_extra or {})


# --------------------------------------------------------------------------------------------------------- training


class MultiplierSection(Section):
    """Learning-rate factors of parameter groups, for runs that start from weights."""

    image: float = Field(1.0, ge=0.0, description="image tower; 0 locks it: no gradient, its BatchNorm still")
    text: float = Field(1.0, ge=0.0, description="text tower; 0 locks it")
    heads: float = Field(1.0, ge=0.0, description="projections, heads and objectives")


class OptimSection(Section):
    """AdamW (no decay on norms, biases, embeddings, logit scale), Muon where asked, warm-up, cosine."""

    lr: float = Field(1e-3, gt=0.0, description="peak learning rate")
    muon: float | None = Field(
        None, gt=0.0, description="weight matrices by Muon at this multiple of lr; null leaves them to AdamW"
    )
    weight_decay: float = Field(0.05, ge=0.0, description="decoupled weight decay")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW betas")
    eps: float = Field(1e-6, gt=0.0, description="AdamW epsilon")
    warmup_steps: int = Field(0, ge=0, description="linear warm-up, in optimiser steps")
    final_lr_fraction: Fraction = Field(0.01, description="learning rate at the end of the cosine, relative to lr")
    clip_norm: float | None = Field(1.0, gt=0.0, description="gradient norm bound; null for none")
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    lr_multipliers: MultiplierSection = Field(MultiplierSection(), description="per-group factors")
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="rates fall by this factor a layer from the projections down; 1: they do not"
    )
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0, description="release averaged weights; null for none")


class TrainSection(Section):
    """Length and machinery of the run."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(32, ge=2, description="studies per rank and batch")
    chunk: int | None = Field(
        None, ge=1, description="studies encoded at once: gradient of the whole batch, a quarter slower; null for all"
    )
    cache_gib: float = Field(8.0, gt=0.0, description="with chunk: most memory for features that are kept, GiB")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the machine gains")
    devices: int = Field(1, ge=1, description="ranks on this machine")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="where to run")
    strategy: Literal["auto", "ddp", "fsdp2"] = Field("auto", description="how ranks share the model")
    nonfinite: Literal["skip", "stop"] = Field("skip", description="what a non-finite loss or gradient does")
    max_nonfinite: int = Field(10, ge=0, description="skipped steps after which the run stops")


class EvaluateSection(Section):
    """Zero-shot scores during and after training."""

    task: str | None = Field(None, description="task name in eval_zero_shot/tasks or a YAML path; null for none")
    every_steps: int = Field(100, ge=1, description="steps between scores on splits.select")
    max_studies: int | None = Field(None, ge=1, description="studies scored during training; null for all")
    final: bool = Field(True, description="score splits.test at the end")


class CheckpointSection(Section):
    """What is kept of the weights: always last and best, and the best keep_top."""

    every_steps: int = Field(100, ge=1, description="steps between checkpoints")
    keep_top: int = Field(1, ge=0, description="best checkpoints kept beside last and best")


class OutputSection(Section):
    """Where results go."""

    root: str = Field("runs", min_length=1, description="folder of all runs")
    run: str | None = Field(None, description="name of this run's folder; null makes one from name and time")


class Origin:
    """Where each key of a recipe was written: path -> "file:line" or "command line". Never part of equality."""

    def __init__(self, places: dict[Path, str] | None = None) -> None:
        self.places = places or {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    __hash__ = object.__hash__

    def where(self, path: Path) -> str:
        """Place of the key, or of the closest section around it that was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return ""


class Recipe(Section):
    """One experiment."""

    _origin: Origin = PrivateAttr(default_factory=Origin)

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="letters, digits, dot, dash, underscore")
    seed: int = Field(0, ge=0, description="seed of weights, order, augmentation and dropout")
    data: DataSection = Field(description="studies and batches")
    model: ModelSection = Field(description="dual encoder")
    objectives: tuple[ObjectiveSection, ...] = Field(min_length=1, description="terms of the loss")
    optim: OptimSection = Field(OptimSection(), description="optimiser")
    train: TrainSection = Field(description="length and machinery")
    evaluate: EvaluateSection = Field(EvaluateSection(), description="zero-shot scores")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="checkpoints")
    output: OutputSection = Field(OutputSection(), description="run folder")
    finish: FinishSection | None = Field(None, description="interpolation at the end of the run; null for none")

    @property
    def cache_dir(self) -> pathlib.Path:
        """`data.cache` with ~ resolved."""
        return pathlib.Path(self.data.cache).expanduser()
