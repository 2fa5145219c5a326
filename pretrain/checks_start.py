"""Checks of what a model starts from, and of its BatchNorm. Stage 1: no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoders.volumetric import is_volumetric
from pretrain import known_models
from pretrain.schema import ModelSection
from pretrain.yaml_lines import Problem

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}  # what model.text can say


def check_pretrained(model: ModelSection) -> Iterator[Problem]:
    """`model.pretrained` and `model.image.pretrained`. Which tags there are is known once open_clip is imported."""
    image, whole = ("model", "image", "pretrained"), ("model", "pretrained")
    name, cfg = model.image.name, known_models.open_clip_config(model.image.name)
    timms = model.text is None and name == name.lower()  # open_clip has some of these names too: convnext_base
    for at, source in ((whole, model.pretrained), (image, model.image.pretrained)):
        if not isinstance(source, str):
            continue
        if cfg is None:
            fix = "its published weights: true, a tag of them after the dot of the name" if at == image else ""
            what = f"'{name}' is no open_clip model, so there are no weights of it under '{source}'"
            yield Problem(at, what, fix or "an open_clip name in model.image.name, such as ViT-B-16-quickgelu")
        elif timms and at == image:
            what = f"'{source}' is of an open_clip model, and without a text tower '{name}' is timm's"
            yield Problem(at, what, "true, a tag of timm's after the dot of the name, or pretrained_file: FILE")
        elif source.endswith(WEIGHTS) and not Path(source).expanduser().is_file():
            fix = f"a file, or a tag: open_clip.list_pretrained_tags_by_model('{name}')"
            yield Problem(at, f"no file '{source}'", fix)
    if cfg is not None and model.image.pretrained is True and not timms:
        what = f"open_clip has several weights for '{name}'"
        yield Problem(image, what, f"name one of open_clip.list_pretrained_tags_by_model('{name}'), or a file")
    parts = ("pretrained", "pretrained_file", "inflate")
    starts: dict[tuple[str, ...], object] = {("model", "init"): model.init, whole: model.pretrained}
    starts |= {("model", "image", part): getattr(model.image, part) for part in parts}
    given = [at for at, source in starts.items() if source]
    if len(given) > 1 and {whole, image} & set(given):  # the other checks speak of the others
        what = f"{'.'.join(given[0])} and this would overwrite each other's weights"
        yield Problem(given[1], what, "leave one of the two out")
    if cfg is not None and model.pretrained is not None:
        yield from _check_sizes(model, cfg)


def _check_sizes(model: ModelSection, cfg: dict[str, Any]) -> Iterator[Problem]:
    """Whether `model.text` and `embed_dim` are those of the weights; images and texts may be of another length."""
    theirs, name = cfg["text_cfg"], model.image.name
    if model.text is None:
        what = "the weights hold a text tower, and model.text is null"
        yield Problem(("model", "pretrained"), what, "model.image.pretrained starts the image tower alone")
        return
    strange = sorted(set(theirs) - TEXT)
    if strange or model.text.hf_name:
        stated = f"'{name}' states {', '.join(strange)} of it"
        why = "model.text.hf_name is another one" if model.text.hf_name else stated
        what = f"the weights hold a text tower that is not the one of this recipe: {why}"
        yield Problem(("model", "pretrained"), what, "model.image.pretrained starts the image tower alone")
        return
    for key in ("width", "heads", "layers", "vocab_size"):
        if getattr(model.text, key) != theirs.get(key, getattr(model.text, key)):
            what = f"{getattr(model.text, key)}, but the text tower of '{name}' has {theirs[key]}"
            yield Problem(("model", "text", key), what, f"write {theirs[key]}")
    if model.embed_dim != cfg["embed_dim"]:
        what = f"{model.embed_dim}, but '{name}' has {cfg['embed_dim']}"
        yield Problem(("model", "embed_dim"), what, f"write {cfg['embed_dim']}")


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
    return bool(image.inflate or image.pretrained or image.pretrained_file or model.pretrained or model.init)
