"""From a YAML file and command-line overrides to a Recipe, or to every mistake at once, without importing torch.

Stage 1 (here): schema, paths, our model tags, names in shipped lists. Stage 2 (after imports, before data or GPU) is
the business of `pretrain.fit`, which reports through `refuse` and `options_of` in the same words.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path as FilePath
from typing import Any, TypeVar

import pydantic
import yaml

from encoders.tag import Tag
from encoders.tag_swin3d import SwinTag
from encoders.volumetric import is_volumetric, parse
from pretrain import checks
from pretrain.arguments import Arguments, schema_help, split_argv
from pretrain.errors import ConfigError
from pretrain.schema import ObjectiveSection, Origin, Recipe, TextTower, TrainSection
from pretrain.schema_objectives import OBJECTIVE_OPTIONS
from pretrain.wording import describe, locate, report
from pretrain.yaml_lines import Document, Problem, apply_override, read

__all__ = [
    "Arguments",
    "ConfigError",
    "Problem",
    "dump",
    "load_recipe",
    "options_of",
    "refuse",
    "schema_help",
    "smoke",
    "split_argv",
]

OptionsT = TypeVar("OptionsT", bound=pydantic.BaseModel)


def packaged() -> tuple[str, ...]:
    """File names of the recipes that come with the package."""
    return tuple(sorted(f.name for f in resources.files("configs").iterdir() if f.name.endswith(".yaml")))


def find(name: str) -> tuple[str, str]:
    """Text and display name of a recipe: a file as given, else a packaged recipe (the suffix may be left out).

    Raises:
        ConfigError: neither exists.
    """
    given = FilePath(name)
    if given.is_file():
        try:
            return given.read_text(encoding="utf-8"), name
        except UnicodeDecodeError:
            raise ConfigError(f"{name} is not a text file in UTF-8", fix="save it as UTF-8 text") from None
    for candidate in (name, f"{name}.yaml"):
        if candidate in packaged():
            file = resources.files("configs").joinpath(candidate)
            inside = os.path.relpath(str(file))
            return file.read_text(encoding="utf-8"), candidate if inside.startswith("..") else inside
    hint = checks.closest(given.name, packaged())
    raise ConfigError(
        f"no recipe '{name}', neither a file here nor one of the packaged: {', '.join(packaged())}",
        fix=hint or "name a file, or one of these",
    )


def load_recipe(name: str, overrides: Sequence[str] = (), *, smoke: bool = False) -> Recipe:
    """Read, override, validate and cross-check a recipe.

    `overrides` are `key.sub=value` (as `split_argv` gives them) or `--key.sub`, `value` in pairs, applied in order.
    `smoke` shrinks the file's values first, so that overrides still win.

    Raises:
        ConfigError: with every mistake: key path, file and line, what is wrong, what to do.
    """
    text, label = find(name)
    try:
        document = read(text, label)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{label}{line} is not YAML: {what}", fix="check indentation and colons there") from None
    if not isinstance(document.data, dict):
        raise ConfigError(f"{label} holds no keys", fix="start from a packaged recipe: --print-config prints one")
    batch_size = _train(document.data)["batch_size"]
    if smoke:
        _shrink(document.data)
    for override in _pairs(overrides):
        apply_override(document, override)
    if smoke:
        _cut(document.data, batch_size)
    recipe = _validate(document, label)
    recipe._origin = Origin(document.places)
    return recipe


def _pairs(overrides: Sequence[str]) -> Iterator[str]:
    items = iter(overrides)
    for item in items:
        yield item if "=" in item or not item.startswith("--") else f"{item}={next(items, '')}"


def _validate(document: Document, label: str) -> Recipe:
    data, problems = document.data, list(document.problems)
    recipe, found = _parse(data)
    problems += found
    problems += _option_problems(data)
    sections = {key: getattr(recipe, key) for key in Recipe.model_fields} if recipe else _salvage(data, found)
    broken = {p.path[:2] for p in problems}
    problems += [p for p in checks.run(sections) if recipe is not None or p.path[:2] not in broken]
    if recipe is None or problems:
        raise ConfigError(report(problems, Origin(document.places), label))
    return recipe


def _parse(data: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    # Through JSON, because strict JSON keeps "3" and 3 apart yet lets a list become a tuple.
    try:
        return Recipe.model_validate_json(json.dumps(data), strict=True), []
    except pydantic.ValidationError as error:
        return None, describe(error, data, Recipe)


def _salvage(data: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The sections that stand once the offending keys are taken out, so that cross-checks can still speak."""
    rest = copy.deepcopy(data)
    for path in sorted({p.path for p in problems}, key=len, reverse=True):
        parent = locate(rest, path[:-1])
        if isinstance(parent, dict) and path:
            parent.pop(path[-1], None)
    sections: dict[str, Any] = {}
    for key, field in Recipe.model_fields.items():
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(field.annotation or object)
        try:
            if key in rest:
                sections[key] = adapter.validate_json(json.dumps(rest[key]), strict=True)
            elif not field.is_required():
                sections[key] = field.default
        except pydantic.ValidationError:
            continue
    return sections


def _option_problems(data: dict[str, Any]) -> Iterator[Problem]:
    entries = data.get("objectives")
    for i, entry in enumerate(entries if isinstance(entries, list) else ()):
        options_class = OBJECTIVE_OPTIONS.get(str(entry.get("name"))) if isinstance(entry, dict) else None
        if options_class is not None:
            raw = {k: v for k, v in entry.items() if k not in ObjectiveSection.model_fields}
            yield from _check_options(raw, options_class, i)[1]


def _check_options(raw: dict[str, Any], cls: type[OptionsT], index: int) -> tuple[OptionsT | None, list[Problem]]:
    try:
        return cls.model_validate_json(json.dumps(raw), strict=True), []
    except pydantic.ValidationError as error:
        found = describe(error, raw, cls)
        return None, [dataclasses.replace(p, path=("objectives", index, *p.path)) for p in found]


def options_of(recipe: Recipe, index: int, cls: type[OptionsT]) -> OptionsT:
    """Objective `index`'s own options as `cls`; `cls` should forbid extra keys.

    Raises:
        ConfigError: in the words and with the places of stage 1.
    """
    options, problems = _check_options(recipe.objectives[index].options, cls, index)
    if options is None:
        refuse(recipe, problems)
        raise AssertionError("refuse returns only without problems")
    return options


def refuse(recipe: Recipe, problems: Sequence[Problem]) -> None:
    """Raise ConfigError for problems found after imports; nothing happens for an empty list."""
    if problems:
        raise ConfigError(report(problems, recipe._origin, recipe._origin.where(())))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out; `load_recipe` reads it back to an equal Recipe.

    Options of objectives that the recipe leaves out are comments (not those within an option that it names): some are
    refused beside others that do not read them.
    """
    data = recipe.model_dump(mode="json")
    return "".join(_objectives(value) if key == "objectives" else _yaml({key: value}) for key, value in data.items())


def _objectives(entries: list[dict[str, Any]]) -> str:
    lines = ["objectives:\n" if entries else "objectives: []\n"]
    for entry in entries:
        lines.append(_yaml([entry]))
        known = OBJECTIVE_OPTIONS.get(entry["name"])
        rest = known.model_construct().model_dump(mode="json") if known else {}
        lines += [f"  # {line}\n" for key in rest if key not in entry for line in _yaml({key: rest[key]}).splitlines()]
    return "".join(lines)


def _yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    pass


def _flow_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    plain = all(not isinstance(v, dict) for v in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=plain)


_Dumper.add_representer(list, _flow_list)


def smoke(recipe: Recipe) -> Recipe:
    """The recipe shrunk to two CPU steps on a handful of studies; the road is the same, only shorter."""
    data = json.loads(recipe.model_dump_json())
    _shrink(data)
    _cut(data, recipe.train.batch_size)
    small = Recipe.model_validate_json(json.dumps(data), strict=True)
    small._origin = recipe._origin
    return small


STRATIFIED = 32  # most studies of a stratified batch: groups of 2 % and more are in it
_SMOKE: dict[tuple[str, ...], Any] = {
    ("data", "source", "studies"): 24,
    ("data", "workers"): 0,
    ("train", "steps"): 2,
    ("train", "batch_size"): 2,
    ("train", "devices"): 1,
    ("train", "accelerator"): "cpu",
    ("train", "strategy"): "auto",
    ("optim", "warmup_steps"): 1,
    ("optim", "accumulate"): 1,
    ("evaluate", "every_steps"): 2,
    ("evaluate", "max_studies"): 8,
    ("checkpoint", "every_steps"): 1,
}


def _shrink(data: dict[str, Any]) -> None:
    stratified = (locate(data, ("data", "source")) or {}).get("batches") == "stratified"
    whole = _train(data)
    for path, value in _SMOKE.items():
        if path == ("train", "batch_size") and stratified:  # it has to hold every group, on one rank as well
            value = min(whole["batch_size"] * whole["devices"], STRATIFIED)
        if path == ("data", "source", "studies") and (locate(data, ("data", "source")) or {}).get("kind") != "phantom":
            continue
        parent = locate(data, path[:-1])
        if parent is None and len(path) == 2:
            parent = data.setdefault(path[0], {})
        if isinstance(parent, dict):
            parent[path[-1]] = value
    text, usual = locate(data, ("model", "text")), TextTower()
    if isinstance(text, dict) and isinstance(name := text.get("hf_name"), str) and not FilePath(name).is_dir():
        for key in [key for key in text if key.startswith("hf_")]:  # it would have to be fetched
            text.pop(key)
    if isinstance(text, dict) and isinstance(text.get("width"), int) and text["width"] > usual.width:
        text |= {"width": usual.width, "heads": usual.heads, "layers": usual.layers}
    if isinstance(model := locate(data, ("model",)), dict):
        model.pop("pretrained", None)  # weights that have to be fetched, and are those of larger towers
    if isinstance(finish := data.get("finish"), dict):
        # What it starts from is random now, unless it is a release.
        start = finish.get("interpolate_with") if locate(data, ("model", "init")) else "start"
        finish |= {"interpolate_with": start, "alphas": [0.5], "max_studies": 8}
    report = locate(data, ("model", "report"))
    if isinstance(report, dict):
        report |= {"width": 48, "heads": 2, "layers": 1, "feedforward": 96}
        report["fusion_layers"] = min(1, report.get("fusion_layers", 1))
    image = locate(data, ("model", "image"))
    if isinstance(image, dict) and isinstance(image.get("name"), str):
        image["name"] = _small_tower(image["name"])
        if isinstance(image.get("pretrained"), str):
            image["pretrained"] = False
        if image["name"].startswith("swin3d"):  # its attention scores of one study at 96^3 are gigabytes: one at a time
            data["train"]["chunk"] = 1
        if image.get("pretrained"):  # two steps anywhere, without a network
            image["pretrained"] = False
        if image.get("inflate"):  # whose weights do not fit a smaller tower; fixed statistics would be those of none
            image["inflate"] = None
            image["batch_norm"] = "group" if image.get("batch_norm") == "frozen" else image.get("batch_norm", "batch")


def _train(data: dict[str, Any]) -> dict[str, Any]:
    """The section `train` with its defaults."""
    return {key: locate(data, ("train", key)) or field.default for key, field in TrainSection.model_fields.items()}


def _cut(data: dict[str, Any], batch_size: int) -> None:
    """The small batch in parts, if `train.chunk` would cut the whole one."""
    now = _train(data)
    numbers = (now["chunk"], now["batch_size"], batch_size)
    if all(isinstance(number, int) for number in numbers) and now["batch_size"] <= now["chunk"] < batch_size:
        data["train"]["chunk"] = max(1, now["batch_size"] // 2)


def _small_tower(name: str) -> str:
    """Of towers for volumes the same patch, size and channels, smallest width, as few blocks as there can be, two at
    most (in every stage); of open_clip's ViTs the small one."""
    if re.fullmatch(r"ViT-[BLHg]-\d+(-\d+)?(-quickgelu)?", name):
        return "ViT-S-32"
    try:
        tag = parse(name) if is_volumetric(name) else None
    except ValueError:
        return name
    if tag is None:
        return name
    if isinstance(tag, SwinTag):
        return dataclasses.replace(tag, size="tiny", width=12, layers=1).name
    if isinstance(tag, Tag):
        return dataclasses.replace(tag, size="tiny", layers=2 if tag.layers is None else min(2, tag.layers)).name
    return dataclasses.replace(tag, size="resnet26", width=8).name
