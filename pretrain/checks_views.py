"""Stage-1 checks of objectives on two views of an image (`simclr`, `rotation`, `inpainting`): what they read is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pretrain.schema import ModelSection, ObjectiveSection
from pretrain.schema_data import DataSection
from pretrain.schema_objectives import OBJECTIVE_OPTIONS, ViewOptions
from pretrain.yaml_lines import Problem


def check_image_views(
    data: DataSection, model: ModelSection, objectives: Sequence[ObjectiveSection]
) -> Iterator[Problem]:
    seen: dict[str, tuple[int, object]] = {}
    for i, objective in enumerate(objectives):
        options = OBJECTIVE_OPTIONS.get(objective.name)
        if options is None or not issubclass(options, ViewOptions):
            continue
        for key, field in ViewOptions.model_fields.items():
            value = objective.options.get(key, field.default)
            other, first = seen.setdefault(key, (i, value))
            if value != first:
                what = f"{value}, but {first} in objectives.{other}: they share the same two views"
                yield Problem(("objectives", i, key), what, "write the same value in both")
        plane = data.train_view.size[-2:]
        if objective.name == "rotation" and len(plane) == 2 and plane[0] != plane[1]:
            what = f"rotation tells turns by 90° apart, and a plane of {plane[0]}x{plane[1]} cannot be turned so"
            yield Problem(("objectives", i), what, "make the last two numbers of data.train_view.size equal")
        if objective.name == "inpainting" and model.image.token_dropout:
            what = "inpainting needs a token at every place, and model.image.token_dropout takes some away"
            yield Problem(("objectives", i), what, "set token_dropout to 0, or leave inpainting out")
