"""The studies of a recipe: what its sources name, opened and checked, before a model is there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.errors import DataError
from data_shards.geometry import AnyGeometry, View, geometry_from_dict
from data_shards.mixture import Mixture
from data_shards.opening import tell_lost, with_text
from data_shards.schema import VOLUME_EXT
from data_shards.shard_set import ShardSet
from data_shards.shards import Shards
from data_shards.union import ShardUnion
from data_shards.units import captions_identity
from pretrain import launch
from pretrain.errors import ConfigError
from pretrain.schema import Recipe
from pretrain.schema_data import MixtureEntry, MixtureSource, PhantomSource, ShardSource, TarSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Data:
    """The studies of a run, how they are mixed, and what to make of them."""

    shards: Shards
    mixture: Mixture | None
    geometry: AnyGeometry
    train_view: View
    eval_view: View
    train_rows: np.ndarray
    select_rows: np.ndarray
    test_rows: np.ndarray

    def train_labels(self) -> torch.Tensor:
        """Of the training studies, [R, L] in the order of the shards' label names: 1, 0, NaN where unknown."""
        import torch

        return torch.from_numpy(self.shards.labels()[self.train_rows])

    def train_captions(self, most: int = 2000) -> list[int]:
        """What identifies the list of captions of training studies, 0 for none; of more than `most` an even choice, and
        nothing where that says nothing: all have a list, no two the same one, and the others may."""
        rows = self.train_rows[:: -(-len(self.train_rows) // most)]
        found = [captions_identity(self.shards.json(int(row))["texts"]) for row in rows]
        unsure = len(rows) < len(self.train_rows) and any(found) and len(set(found)) == len(found)
        return [] if unsure else found


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

        asked: dict[str, Any] = {"layout": source.layout, "modality": source.modality}
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
    volumes = shards.members(row)[0].endswith(VOLUME_EXT)
    if volumes != (recipe.data.geometry.kind != "image"):
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
    reads_texts = recipe.model.text is not None
    if len(train) and reads_texts and recipe.data.units.templates is None:  # which may say something of every sample
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
