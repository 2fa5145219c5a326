"""Stage-1 checks of objectives on views of an image: what they read is one, and can be made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from encoders.volumetric import is_volumetric
from pretrain.schema import ModelSection, ObjectiveSection
from pretrain.schema_data import DataSection
from pretrain.schema_objectives import OBJECTIVE_OPTIONS, ViewOptions
from pretrain.yaml_lines import Problem


def check_image_views(
    data: DataSection, model: ModelSection, objectives: Sequence[ObjectiveSection]
) -> Iterator[Problem]:
    seen: dict[str, tuple[int, object]] = {}
    for i, objective in enumerate(objectives):
        options: Any = OBJECTIVE_OPTIONS.get(objective.name)
        crops = options is not None and "crops" in options.model_fields
        if options is None or not (crops or issubclass(options, ViewOptions)):
            continue
        try:
            told = options(**objective.options)
        except ValidationError:
            continue  # said elsewhere
        if getattr(told, "views", "crops" if crops else "turned") == "crops":
            yield from _check_crops(i, told, data, model)
            yield from _check_cells(i, told, objectives)
            keys: tuple[str, ...] = ("crops",)
            unused = tuple(ViewOptions.model_fields)
        else:
            keys, unused = tuple(ViewOptions.model_fields), ("crops",)
        for key in set(unused) & set(objective.options):
            what = f"would be ignored: views is {told.views}" if hasattr(told, "views") else "would be ignored"
            yield Problem(("objectives", i, key), what, "leave it out, or change views")
        for key in keys if objective.name != "byol" else ():  # which makes views of its own
            value = getattr(told, key)
            other, first = seen.setdefault(key, (i, value))
            if value != first:
                what = f"{value}, but {first} in objectives.{other}: they share the same two views"
                if key == "crops":
                    what = f"other crops than those of objectives.{other}: they share them"
                yield Problem(("objectives", i, key), what, "write the same value in both")
        plane = data.train_view.size[-2:]
        if objective.name == "rotation" and len(plane) == 2 and plane[0] != plane[1]:
            what = f"rotation tells turns by 90° apart, and a plane of {plane[0]}x{plane[1]} cannot be turned so"
            yield Problem(("objectives", i), what, "make the last two numbers of data.train_view.size equal")
        if objective.name == "inpainting" and model.image.token_dropout:
            what = "inpainting needs a token at every place, and model.image.token_dropout takes some away"
            yield Problem(("objectives", i), what, "set token_dropout to 0, or leave inpainting out")


def _check_crops(i: int, told: Any, data: DataSection, model: ModelSection) -> Iterator[Problem]:
    at, crops = ("objectives", i, "crops"), told.crops
    if is_volumetric(model.image.name):
        what = "crops with known places are of images, and this tower takes volumes"
        yield Problem(("objectives", i), what, "use views: turned, or a tower of images on data.geometry.kind: slice")
    if not crops.small and crops.small_size is not None:
        yield Problem((*at, "small_size"), "would be ignored: there are no small crops", "set small, or leave it out")
    if not crops.small and "small_scale" in crops.model_fields_set:
        yield Problem((*at, "small_scale"), "would be ignored: there are no small crops", "set small, or leave it out")
    if hasattr(told, "alpha") and told.alpha < 1 and model.image.token_dropout:
        what = "the local affinity needs a token at every place, and model.image.token_dropout takes some away"
        yield Problem(("objectives", i), what, "set token_dropout to 0, or alpha to 1")


def _check_cells(i: int, told: Any, objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    """Maps are read by graph_matching, which shares its crops with all but byol, or by somebody else's objective."""
    if "cells" not in told.crops.model_fields_set:
        return
    shared = objectives[i].name != "byol"
    if not shared or not any(":" in one.name or _reads_maps(one) for one in objectives):
        why = "nobody reads feature maps of these crops"
        yield Problem(("objectives", i, "crops", "cells"), f"would be ignored: {why}", "leave it out")


def _reads_maps(objective: ObjectiveSection) -> bool:
    return objective.name == "graph_matching" and objective.options.get("alpha", 0) != 1
