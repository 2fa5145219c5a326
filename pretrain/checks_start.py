"""Checks of what a model starts from, and of its BatchNorm. Stage 1: no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from encoders.volumetric import is_volumetric
from pretrain import known_models
from pretrain.schema import ModelSection
from pretrain.yaml_lines import Problem


def check_start(model: ModelSection) -> Iterator[Problem]:
    image = model.image
    if image.inflate is not None:
        at, file = ("model", "image", "inflate"), Path(image.inflate).expanduser()
        if not is_volumetric(image.name):
            yield Problem(at, f"'{image.name}' takes images: there is nothing to inflate", "pretrained: true")
        elif file.suffix in (".safetensors", ".pth", ".pt", ".bin"):
            if not file.is_file():
                yield Problem(at, f"no file '{image.inflate}'", "a file of 2D weights, or a timm name")
        elif not known_models.is_known(image.inflate):
            hint = known_models.suggest(image.inflate) or "a timm name, or a file: .safetensors, .pth, .pt or .bin"
            yield Problem(at, f"no model or file of weights is called '{image.inflate}'", hint)
        if model.init is not None:
            yield Problem(at, "would be overwritten by model.init", "leave one of the two out")
    at = ("model", "image", "batch_norm")
    if image.batch_norm == "group" and not image.name.startswith("i3d_"):
        what = f"'{image.name}' is not converted: no name would say so, and its release could not be loaded"
        yield Problem(at, what, "use frozen, an i3d_*, or a tower that has GroupNorm (timm: resnet50_gn)")
    if image.batch_norm == "frozen" and not _starts(model):
        what = "the statistics of a tower that starts at random are 0 and 1: nothing would be normalised"
        yield Problem(
            at, what, "start from weights (inflate, pretrained, pretrained_file, or model.init), or use group"
        )


def _starts(model: ModelSection) -> bool:
    image = model.image
    return bool(image.inflate or image.pretrained or image.pretrained_file or model.init)
