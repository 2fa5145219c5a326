"""Recipe to objects: streams, model, objectives. The second stage of a recipe's checks happens here, before any
data is read and before a GPU is touched."""

from __future__ import annotations

from typing import Any

from data_shards.captions import load_templates
from data_shards.stream import Stream, UnitPolicy
from encoders.dual import DualEncoder, build_dual
from encoders.image_only import tower_args
from encoders.tokenize import BPE, HFTokenizer
from encoders.volumetric import is_volumetric
from pretrain.batch_norm import settle_batch_norm, with_group_norm
from pretrain.centring import bias_of
from pretrain.config import options_of
from pretrain.errors import ConfigError
from pretrain.layers import layer_factors
from pretrain.objectives import NAMES, find_objective
from pretrain.objectives.base import Objective
from pretrain.reports import report_transformer
from pretrain.schema import Recipe, TextTower
from pretrain.schema_objectives import SigmoidOptions
from pretrain.starting import inflate_image, start_from, start_from_published, start_image_from
from pretrain.studies import Data

OF_TEXTS = ("text:", "report:", "report_", "logit_", "image:global.pooled")  # what a run without texts does not have


def training_stream(
    recipe: Recipe, data: Data, tokenize: Any, rank: int, world: int, first_batch: int, labels: bool = False,
    to_gpu: bool = False,
) -> Stream:  # fmt: skip
    """The training batches of one rank, from batch `first_batch` on. labels: with the labels of the studies. to_gpu:
    with as few bytes to move as can be, those that workers make in pinned memory."""
    return Stream(
        data.shards,
        data.train_rows,
        data.geometry,
        data.train_view,
        tokenize,
        unit_policy(recipe),
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        steps=recipe.train.steps * recipe.optim.accumulate,
        rank=rank,
        world=world,
        workers=recipe.data.workers,
        start_step=first_batch,
        label_names=data.shards.label_names if labels else (),
        mixture=data.mixture,
        max_damaged=recipe.data.max_damaged,
        pin_memory=to_gpu,
        raw=to_gpu,
    )


def unit_policy(recipe: Recipe) -> UnitPolicy | None:
    """`data.units`, with the file of its caption templates read; None where no tower reads texts. Raises DataError
    where that file is not there or wrong."""
    units, text = recipe.data.units, recipe.model.text
    if text is None:
        return None
    made = load_templates(units.templates) if units.templates else None
    return UnitPolicy(**units.model_dump() | {"templates": made, "variants": text.cached})


def tokenizer(recipe: Recipe) -> BPE | HFTokenizer:
    text = recipe.model.text or TextTower()  # of no text there is nothing to tokenise
    if text.hf_name:
        return HFTokenizer(text.hf_name, text.context_length, text.hf_wordpunct)
    return BPE(text.context_length)


def model_cfg(recipe: Recipe) -> dict[str, Any]:
    """open_clip's `model_cfg` dict of a recipe: what the release's open_clip_config.json will hold. Without a text
    tower it is `vision_cfg` alone (encoders.image_only)."""
    import open_clip

    image, text = recipe.model.image, recipe.model.text
    if text is None:
        return {"vision_cfg": _image_only_cfg(recipe)}
    cfg: dict[str, Any] = {
        "embed_dim": recipe.model.embed_dim,
        "custom_text": True,
        "init_logit_scale": recipe.model.init_logit_scale,
    }
    if image.name in open_clip.list_models():
        native = open_clip.get_model_config(image.name)
        cfg["vision_cfg"] = {**native["vision_cfg"], "image_size": image.image_size}
        if native.get("quick_gelu"):
            cfg["quick_gelu"] = True
    else:
        cfg["vision_cfg"] = {
            "timm_model_name": _timm_name(recipe),
            "timm_model_pretrained": image.pretrained is True,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": image.image_size,
        }
    if text.hf_name:
        cfg["text_cfg"] = {
            "hf_model_name": text.hf_name,
            "hf_tokenizer_name": text.hf_name,
            "hf_pooler_type": text.hf_pooler,
            "hf_proj_type": text.hf_proj,
            "context_length": text.context_length,
            **({"tokenizer_kwargs": {"wordpunct": True}} if text.hf_wordpunct else {}),  # until it is released
        }
    else:
        cfg["text_cfg"] = {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        }
    if recipe.model.centred:  # the running means live in these biases
        cfg["vision_cfg"]["timm_proj_bias"] = cfg["text_cfg"]["proj_bias"] = True
    for i, objective in enumerate(recipe.objectives):
        if objective.name == "sigmoid":
            cfg["init_logit_bias"] = options_of(recipe, i, SigmoidOptions).init_bias
    return cfg


def _timm_name(recipe: Recipe) -> str:
    image = recipe.model.image
    return with_group_norm(image.name) if image.batch_norm == "group" else image.name


def _image_only_cfg(recipe: Recipe) -> dict[str, Any]:
    image, name = recipe.model.image, _timm_name(recipe)
    args: dict[str, Any] = {}
    *_, height, width = recipe.data.eval_view.size
    if not is_volumetric(name):
        try:
            args = tower_args(name, (height, width))
        except RuntimeError as error:
            raise ConfigError(
                f"model.image.name: {error}",
                why="without a text tower the image tower is timm's",
                fix="timm.list_models() prints what exists",
            ) from error
    return {
        "timm_model_name": name,
        "timm_model_pretrained": image.pretrained is True,
        "image_size": [height, width],
        **({"timm_model_args": args} if args else {}),
    }


def build_model(recipe: Recipe, with_init: bool = True) -> DualEncoder:
    """The dual encoder with fresh weights, or with those of `model.init` (a resumed run has its own, so it needs no
    release).

    Raises:
        ConfigError: a tower that does not exist, or a release of another architecture; unknown layers.
    """
    cfg = model_cfg(recipe)
    try:
        dual = build_dual(cfg)
    except (RuntimeError, TypeError, ValueError, AssertionError, OSError) as error:
        raise ConfigError(
            f"model: this model cannot be built: {error}",
            why="timm, open_clip or Hugging Face refuse the name or its settings",
            fix="try a name from timm.list_models() or open_clip.list_models(), or a voxvit",
        ) from error
    if recipe.model.centred:
        try:
            _ = bias_of(dual, "image"), bias_of(dual, "text")
        except ValueError as error:
            raise ConfigError(
                f"model.centred: {error}",
                why="the release would lack the mean that training subtracts",
                fix="set it to false, or use a timm image tower and the native text tower",
            ) from error
    if recipe.model.image.grad_checkpointing:  # open_clip's Hugging Face towers take False for True
        dual.clip.set_grad_checkpointing(True)
    if recipe.model.image.token_dropout:
        trunk: Any = getattr(dual.clip.visual, "trunk", None)
        if not hasattr(trunk, "token_dropout"):
            raise ConfigError(
                "model.image.token_dropout: this tower drops no tokens",
                why="the run would be slower than the recipe says, in silence",
                fix="use a voxvit, or set it to 0",
            )
        trunk.token_dropout = recipe.model.image.token_dropout
    if recipe.model.report is not None:
        dual.report = report_transformer(recipe, dual, tokenizer(recipe).marks())
    if recipe.model.init and with_init:
        start_from(dual, recipe.model.init)
    if with_init:
        start_from_published(dual, recipe.model)
    if recipe.model.image.inflate and with_init:
        inflate_image(dual, recipe.model.image.inflate)
    if recipe.model.image.pretrained_file and with_init:
        start_image_from(dual, recipe.model.image.pretrained_file)
    settle_batch_norm(dual, recipe)
    if recipe.optim.layer_decay != 1:  # said before data is read, not by the optimiser
        layer_factors(dual.clip, recipe.optim.layer_decay)
    return dual


def build_objectives(recipe: Recipe) -> list[Objective]:
    """The objectives in the order of the recipe.

    Raises:
        ConfigError: a name or import path that does not exist, or options it does not take.
    """
    built = []
    for i, section in enumerate(recipe.objectives):
        try:
            cls = find_objective(section.name)
        except ValueError as error:
            raise ConfigError(
                f"objectives.{i}.name: {error}",
                fix=f"use one of {', '.join(NAMES)}, or package.module:Class of your own",
            ) from error
        built.append(cls(options_of(recipe, i, cls.Options)))
        if recipe.model.text is None and (lacking := [read for read in built[-1].reads if read.startswith(OF_TEXTS)]):
            raise ConfigError(
                f"objectives.{i}.name: {section.name} reads {lacking[0]}, and model.text is null",
                why="there is no joint space of images and texts",
                fix="leave it out, or add a text tower: model.text: {}",
            )
    return built


def on_gpu(recipe: Recipe) -> bool:
    """Whether the recipe trains on a GPU here."""
    import torch

    return torch.cuda.is_available() and recipe.train.accelerator != "cpu"


def precision(recipe: Recipe) -> str:
    """Lightning's precision string. `auto` is bf16 where the hardware multiplies in it, fp32 elsewhere."""
    import torch

    asked = recipe.train.precision
    if asked == "auto":
        if on_gpu(recipe):
            asked = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        else:
            asked = "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return {"fp32": "32-true", "bf16": "bf16-mixed"}[asked]
