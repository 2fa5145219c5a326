"""Checks of `data.source`: what is there, and what a mixture is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pretrain.schema import TrainSection
from pretrain.schema_data import DataSection, MixtureEntry, MixtureSource, ShardSource, TarSource, VolumeGeometry
from pretrain.yaml_lines import Problem


def check_source(data: DataSection) -> Iterator[Problem]:
    source = data.source
    if source.kind == "phantom":
        if not isinstance(data.geometry, VolumeGeometry):
            yield Problem(("data", "geometry", "kind"), "phantoms are CT volumes", "kind: volume")
        return
    if isinstance(source, MixtureSource):
        for i, entry in enumerate(source.sources):
            yield from _check_place(entry, ("data", "source", "sources", i))
        yield from _check_mixture(source)
        return
    yield from _check_place(source, ("data", "source"))


def _check_place(source: ShardSource | TarSource | MixtureEntry, path: tuple[str | int, ...]) -> Iterator[Problem]:
    """Whether there is something of the kind that is named. What a URL holds is found out when it is opened."""
    if source.selection and not Path(source.selection).expanduser().is_file():
        yield Problem((*path, "selection"), f"no file '{source.selection}'", "python -m data_shards.select ... --out")
    name, folder = source.path, Path(source.path).expanduser()
    if isinstance(source, TarSource) or (isinstance(source, MixtureEntry) and source.layout):
        if not folder.exists() and next(folder.parent.glob(folder.name), None) is None:
            yield Problem((*path, "path"), f"no folder or tar '{name}'", "a folder with tars, or a pattern: '*.tar'")
        return
    if "://" in name:
        return
    if not folder.is_dir():
        yield Problem((*path, "path"), f"no folder '{name}'", f"python -m data_shards.build ... --out {name}")
    elif not (folder / "manifest.json").is_file():
        fix = (
            "published tars of others: kind: tars"
            if next(folder.glob("*.tar"), None)
            else "python -m data_shards.build"
        )
        yield Problem((*path, "path"), f"'{name}' has no manifest.json: not a whole shard set", fix)


def _check_mixture(source: MixtureSource) -> Iterator[Problem]:
    at: tuple[str | int, ...] = ("data", "source")
    names = [entry.name for entry in source.sources]
    for i, entry in enumerate(source.sources):
        if entry.modality is not None and entry.layout is None:
            what = "would be ignored: a shard set says the modality of every scan"
            yield Problem((*at, "sources", i, "modality"), what, "leave it out, or give the layout of published tars")
        if entry.name in names[:i]:
            yield Problem((*at, "sources", i, "name"), f"'{entry.name}' is there already", "give every source a name")
        if source.mix == "weights" and entry.weight is None:
            what = f"source '{entry.name}' has no weight, and data.source.mix is weights"
            yield Problem((*at, "sources", i), what, "give one, or set mix to proportional, uniform or temperature")
        elif source.mix != "weights" and entry.weight is not None:
            what = f"would be ignored: data.source.mix is {source.mix}"
            yield Problem((*at, "sources", i, "weight"), what, "leave it out, or set mix to weights")
    if (source.mix == "temperature") != (source.temperature is not None):
        lacking = source.temperature is None
        what = "required by mix: temperature" if lacking else f"would be ignored: data.source.mix is {source.mix}"
        yield Problem((*at, "temperature"), what, "write a number, 1 for proportional" if lacking else "leave it out")
    if source.batches == "mixed" and source.by == "modality":
        what = "would be ignored: mixed batches have no groups"
        yield Problem((*at, "by"), what, "set data.source.batches to homogeneous or stratified, or leave it out")


def check_stratified(data: DataSection, train: TrainSection) -> Iterator[Problem]:
    source = data.source
    if source.kind != "mixture" or source.batches != "stratified" or source.by != "source":
        return  # how many modalities there are is known once the shards are open
    size, groups = train.batch_size * train.devices, len(source.sources)
    if size < groups:
        what = f"a global batch of {size} cannot hold all {groups} sources, and data.source.batches is stratified"
        yield Problem(("train", "batch_size"), what, f"{-(-groups // train.devices)} or more")
