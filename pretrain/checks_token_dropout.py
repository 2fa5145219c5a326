"""Checks of token dropout, and of the objectives that live on it. Stage 1: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from encoders.tag import Tag, parse_tag
from pretrain.schema import ModelSection, ObjectiveSection
from pretrain.yaml_lines import Problem

NEED = {
    "masked_image": "predicts the patches that token dropout took",
    "distillation": "compares a tower that drops tokens with one that does not",
}


def check_token_dropout(model: ModelSection, objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    image = model.image
    if image.token_dropout_finish and not image.token_dropout:
        what = "would be ignored: model.image.token_dropout is 0"
        yield Problem(("model", "image", "token_dropout_finish"), what, "set token_dropout, or leave it out")
    for i, objective in enumerate(objectives):
        at, fix = ("objectives", i), "set it to 0.5, say, or leave the objective out"
        if objective.name in NEED and not image.token_dropout:
            what = f"{objective.name} {NEED[objective.name]}, and model.image.token_dropout is 0"
            yield Problem(at, what, fix)
        elif objective.name == "masked_image" and (tag := _tag(image.name)):
            if tag.pool == "grid":
                what = "masked_image reads the kept tokens, and o-grid puts zeros in the places of the others"
                yield Problem(at, what, "use another pooling in model.image.name, or leave masked_image out")
            if tag.stem != "patch":
                what = (
                    f"masked_image predicts the patches that token dropout took, and s-{tag.stem} works over the whole "
                    "volume: every kept token has seen them"
                )
                yield Problem(at, what, "use the patch stem (no s- in model.image.name), or leave masked_image out")


def _tag(name: str) -> Tag | None:
    try:
        return parse_tag(name) if name.startswith("voxvit") else None
    except ValueError:
        return None  # reported elsewhere
