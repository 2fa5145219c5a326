"""Recipe to objects: shards, streams, model, objectives. The second stage of a recipe's checks happens here, before any
data is read and before a GPU is touched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.captions import load_templates
from data_shards.errors import DataError
from data_shards.geometry import Geometry, PlanarGeometry, View, geometry_from_dict
from data_shards.mixture import Mixture
from data_shards.opening import tell_lost, with_text
from data_shards.shard_set import ShardSet
from data_shards.shards import Shards
from data_shards.stream import Stream, UnitPolicy
from data_shards.union import ShardUnion
from encoders.dual import DualEncoder, build_dual
from encoders.tokenize import BPE, HFTokenizer
from pretrain import launch
from pretrain.batch_norm import settle_batch_norm, with_group_norm
from pretrain.centring import bias_of
from pretrain.config import options_of
from pretrain.errors import ConfigError
from pretrain.objectives import NAMES, find_objective
from pretrain.objectives.base import Objective
from pretrain.reports import report_transformer
from pretrain.schema import Recipe
from pretrain.schema_data import MixtureEntry, MixtureSource, PhantomSource, ShardSource, TarSource
from pretrain.schema_objectives import SigmoidOptions
from pretrain.starting import inflate_image, start_from

if TYPE_CHECKING:
    import torch

VOLUME_MEMBER = ".b2nd"  # ending of a stored volume; images keep their own


@dataclass(frozen=True)
class Data:
    """The studies of a run, how they are mixed, and what to make of them."""

    shards: Shards
    mixture: Mixture | None
    geometry: Geometry | PlanarGeometry
    train_view: View
    eval_view: View
    train_rows: np.ndarray
    select_rows: np.ndarray
    test_rows: np.ndarray

    def train_labels(self) -> torch.Tensor:
        """Of the training studies, [R, L] in the order of the shards' label names: 1, 0, NaN where unknown."""
        import torch

        return torch.from_numpy(self.shards.labels()[self.train_rows])


def make_phantoms(recipe: Recipe) -> Path | None:
    """Folder of the phantoms of a recipe that asks for them, made the first time, on all cores."""
    source = recipe.data.source
    if not isinstance(source, PhantomSource):
        return None
    from data_shards.phantom import ensure

    return ensure(Path(recipe.data.cache).expanduser(), source.studies, source.seed, workers=os.cpu_count() or 1)


def open_shards(recipe: Recipe) -> tuple[Shards, Mixture | None]:
    """What `data.source` names. Raises DataError where a shard set is damaged, naming the source in a mixture."""
    source = recipe.data.source
    if isinstance(source, MixtureSource):
        parts: dict[str, Shards] = {}
        for entry in source.sources:
            try:
                parts[entry.name] = _open(entry, recipe)
            except DataError as error:
                raise DataError(f"source {entry.name}: {error.what}", error.why, error.fix) from None
        weights = {e.name: e.weight for e in source.sources if e.weight is not None}
        mixture = Mixture(weights or None, source.mix, source.temperature, source.batches, source.by)
        return ShardUnion(parts), mixture
    if isinstance(source, PhantomSource):
        return ShardSet.open(make_phantoms(recipe) or ""), None
    return _open(source, recipe), None


def _open(source: ShardSource | TarSource | MixtureEntry, recipe: Recipe) -> Shards:
    limit, path = recipe.data.max_damaged, str(Path(source.path).expanduser())
    if isinstance(source, TarSource) or (isinstance(source, MixtureEntry) and source.layout):
        from data_shards.foreign import ForeignShards

        asked: dict[str, Any] = {"layout": source.layout}
        if isinstance(source, TarSource):
            fractions = {"val_fraction": source.val_fraction, "test_fraction": source.test_fraction}
            asked |= {"patient_field": source.patient_field, **fractions}
        cache = Path(recipe.data.cache).expanduser() / "foreign"
        shards = ForeignShards.open(path, cache=cache, max_damaged=limit, **asked)
        if launch.rank() == 0:
            tell_lost(shards, source.name if isinstance(source, MixtureEntry) else "")
        return shards
    return ShardSet.open(source.path if "://" in source.path else path, damaged="count" if limit else "refuse")


def selected_rows(recipe: Recipe, shards: Shards) -> np.ndarray | None:
    """Rows that the sources' selections name, ascending; None where none is declared."""
    source = recipe.data.source
    if isinstance(source, PhantomSource):
        return None
    sources = source.sources if isinstance(source, MixtureSource) else (source,)
    if not any(one.selection for one in sources):
        return None
    from data_shards.selection import load_selection

    parts: list[Any] = list(shards.parts) if isinstance(shards, ShardUnion) else [shards]
    rows, first = [], 0
    for one, part in zip(sources, parts, strict=True):
        chosen = load_selection(Path(one.selection).expanduser(), part) if one.selection else np.arange(len(part))
        rows.append(chosen + first)
        first += len(part)
    return np.concatenate(rows)


def _refuse_other_kind(recipe: Recipe, name: str, shards: Shards, row: int) -> None:
    volumes = shards.members(row)[0].endswith(VOLUME_MEMBER)
    if volumes != (recipe.data.geometry.kind == "volume"):
        have, other = ("volumes", "ct3d_real.yaml") if volumes else ("images", "xray2d.yaml")
        raise ConfigError(
            f"data.source: {name} holds {have}, the recipe is for {'images' if volumes else 'volumes'}",
            why="its image tower and preprocessing are for the other kind",
            fix=f"start from a recipe for {have}, such as {other}",
        )


def build_data(recipe: Recipe) -> Data:
    """Open (or, for phantoms, first make) the shards of a recipe.

    Raises:
        ConfigError: the training split is empty, or a source is of the other kind (volumes, images).
        DataError: a shard set is damaged, or sources cannot be united.
    """
    shards, mixture = open_shards(recipe)
    splits, known = recipe.data.splits, shards.manifest["splits"]
    if not known.get(splits.train):
        raise ConfigError(
            f"data.splits.train: the shard set has no study in split '{splits.train}'",
            why="there would be nothing to train on",
            fix=f"name one of its splits: {', '.join(known)}",
        )
    chosen = selected_rows(recipe, shards)

    def rows_of(split: str) -> np.ndarray:
        rows = shards.rows(split) if known.get(split) else np.empty(0, np.int64)
        return rows if chosen is None else rows[np.isin(rows, chosen)]

    train = rows_of(splits.train)
    if len(train) and recipe.data.units.templates is None:  # which may say something of every sample
        train = with_text(shards, train)
        if not len(train):
            raise ConfigError(
                f"data.units: no study of split '{splits.train}' has a text",
                why="there would be nothing to compare images with",
                fix="make captions of their labels: data.units.templates (docs/captions.md)",
            )
    if not len(train):
        raise ConfigError(
            f"data.source: the selection holds no study of split '{splits.train}'",
            why="there would be nothing to train on",
            fix="make it again: python -m data_shards.select",
        )
    if isinstance(shards, ShardUnion):
        for i, name in enumerate(shards.names):
            own = train[shards.source_R[train] == i]
            if not len(own):
                raise ConfigError(
                    f"data.source.sources.{i}: source '{name}' has no study in split '{splits.train}'",
                    why="the mixture would not be the declared one",
                    fix="take it out of data.source.sources, or name a split that every source has",
                )
            _refuse_other_kind(recipe, f"source '{name}'", shards, int(own[0]))
    else:
        _refuse_other_kind(recipe, "the shard set", shards, int(train[0]))
    # Without a selection or test split a run goes on: nothing is scored then, and the last checkpoint is the best.
    return Data(
        shards,
        mixture,
        geometry_from_dict(recipe.data.geometry.model_dump()),
        View.from_dict(recipe.data.train_view.model_dump()),
        View.from_dict(recipe.data.eval_view.model_dump()),
        train,
        rows_of(splits.select),
        rows_of(splits.test),
    )


def training_stream(
    recipe: Recipe, data: Data, tokenize: Any, rank: int, world: int, first_batch: int, labels: bool = False
) -> Stream:
    """The training batches of one rank, from batch `first_batch` on. labels: with the labels of the studies."""
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
    )


def unit_policy(recipe: Recipe) -> UnitPolicy:
    """`data.units`, with the file of its caption templates read. Raises DataError where that is not there or wrong."""
    units = recipe.data.units
    made = load_templates(units.templates) if units.templates else None
    return UnitPolicy(**units.model_dump() | {"templates": made, "variants": recipe.model.text.cached})


def tokenizer(recipe: Recipe) -> BPE | HFTokenizer:
    text = recipe.model.text
    if text.hf_name:
        return HFTokenizer(text.hf_name, text.context_length, text.hf_wordpunct)
    return BPE(text.context_length)


def model_cfg(recipe: Recipe) -> dict[str, Any]:
    """open_clip's `model_cfg` dict of a recipe: what the release's open_clip_config.json will hold."""
    import open_clip

    image, text = recipe.model.image, recipe.model.text
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
            "timm_model_name": with_group_norm(image.name) if image.batch_norm == "group" else image.name,
            "timm_model_pretrained": image.pretrained,
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


def build_model(recipe: Recipe, with_init: bool = True) -> DualEncoder:
    """The dual encoder with fresh weights, or with those of `model.init` (a resumed run has its own, so it needs no
    release).

    Raises:
        ConfigError: a tower that does not exist, or a release of another architecture.
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
    if recipe.model.image.inflate and with_init:
        inflate_image(dual, recipe.model.image.inflate)
    if recipe.model.image.pretrained_file and with_init:
        _start_image_from(dual, recipe.model.image.pretrained_file)
    settle_batch_norm(dual, recipe)
    return dual


def _start_image_from(dual: DualEncoder, path: str) -> None:
    try:
        dual.clip.visual.trunk.load_pretrained_file(path)
    except ValueError as error:
        raise ConfigError(f"model.image.pretrained_file: {error}") from error


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
    return built


def precision(recipe: Recipe) -> str:
    """Lightning's precision string. `auto` is bf16 where the hardware multiplies in it, fp32 elsewhere."""
    import torch

    asked = recipe.train.precision
    if asked == "auto":
        if torch.cuda.is_available() and recipe.train.accelerator != "cpu":
            asked = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        else:
            asked = "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return {"fp32": "32-true", "bf16": "bf16-mixed"}[asked]
