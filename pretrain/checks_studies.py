"""Checks of towers that see several volumes of a study together. Stage 1: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from encoders.volumetric import is_volumetric, parse
from pretrain.schema import ModelSection, ObjectiveSection
from pretrain.schema_data import DataSection, VolumeGeometry
from pretrain.yaml_lines import Problem

SCANS = ("data", "geometry", "scans_per_study")
LOCAL = {  # objectives that compare texts or images with single tokens -> the option that says so, and its value
    "attended": None,
    "hierarchical": None,
    "matching": None,
    "masked_language": ("condition", "image"),
}


def check_studies(data: DataSection, model: ModelSection, objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    name, geometry = model.image.name, data.geometry
    if not is_volumetric(name) or not isinstance(geometry, VolumeGeometry):
        return
    try:
        tag = parse(name)
    except ValueError:
        return  # reported elsewhere
    scans, volumes = geometry.scans_per_study, getattr(tag, "volumes", 1)
    if scans > 1:
        yield from _stacked(data, scans, len(geometry.windows), volumes, tag.channels)
    if volumes == 1:
        return
    for i, objective in enumerate(objectives):
        at = ("objectives", i, "name")
        if objective.name == "inpainting":
            what = f"inpainting restores one volume from its tokens, and model.image.name has {volumes}"
            yield Problem(at, what, "leave it out, or v- out of model.image.name")
        elif objective.name in LOCAL and _asked(objective):
            what = f"{objective.name} reads tokens by themselves, also those of volumes that are absent or empty"
            yield Problem(at, what, "leave it out, or v- out of model.image.name")


def _asked(objective: ObjectiveSection) -> bool:
    option = LOCAL[objective.name]
    return option is None or objective.options.get(option[0]) == option[1]


def _stacked(data: DataSection, scans: int, windows: int, volumes: int, channels: int) -> Iterator[Problem]:
    """Several scans in a sample: the tower's volumes are these, and its channels their windows."""
    if volumes == 1:
        what = f"{scans} scans of a study, but the model takes one volume: the scans would be windows of one another"
        yield Problem(SCANS, what, f"use a voxvit and write c-{scans * windows}_v-{scans} in model.image.name")
    elif channels != scans * windows:
        what = (
            f"{scans} scans of {windows} windows make {scans * windows} channels, but the model's tag says c-{channels}"
        )
        yield Problem(SCANS, what, f"write c-{scans * windows}_v-{scans} in model.image.name")
    elif volumes % scans:
        what = f"{scans} scans of a study, but the model's tag says v-{volumes}: volumes would be cut across scans"
        yield Problem(
            SCANS, what, f"write v-{scans}, or v-{channels} for every window as a volume, in model.image.name"
        )
    if data.eval_view.kind in ("sliding", "multi"):  # slices are refused for volumes
        what = "crops of one scan lie elsewhere than those of another"
        yield Problem(("data", "eval_view", "kind"), what, "use centre or resize")
