"""Checks of a recipe that need two sections at once, or the disk. Stage 1: no torch, well under a second.

Each check gets the sections that are valid so far and yields Problems; `run` skips a check whose sections are missing.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from encoders.volumetric import NAMES, is_volumetric, parse
from pretrain import known_models
from pretrain.checks_finish import check_finish
from pretrain.checks_images import check_images_alone
from pretrain.checks_matching import check_matching, check_once
from pretrain.checks_report import check_report
from pretrain.checks_source import check_source, check_stratified
from pretrain.checks_start import check_pretrained, check_start
from pretrain.checks_studies import check_studies
from pretrain.checks_terms import check_alternation, check_labels, check_positives, check_schedules
from pretrain.checks_token_dropout import check_token_dropout
from pretrain.checks_views import check_image_views
from pretrain.schema import (
    EvaluateSection,
    ModelSection,
    ObjectiveSection,
    OptimSection,
    TrainSection,
)
from pretrain.schema_data import (
    PERCENTILES,
    DataSection,
    SliceGeometry,
    VolumeGeometry,
)
from pretrain.schema_finish import FinishSection
from pretrain.schema_objectives import OBJECTIVE_OPTIONS
from pretrain.yaml_lines import Problem

_IMAGE_NAME = ("model", "image", "name")


def closest(word: str, options: Iterable[str], count: int = 1) -> str:
    """`did you mean X?` for the closest of the options, or an empty string."""
    found = difflib.get_close_matches(word, list(options), n=count, cutoff=0.6)
    return f"did you mean {' or '.join(found)}?" if found else ""


def check_model_name(model: ModelSection) -> Iterator[Problem]:
    name = model.image.name
    if is_volumetric(name):
        try:
            parse(name)
        except ValueError as error:
            yield Problem(_IMAGE_NAME, str(error), closest(name.partition(".")[0], NAMES))
    elif ":" not in name and not known_models.is_known(name):
        hint = known_models.suggest(name, NAMES)
        # A newer timm may have names this list lacks; then only the installed library can tell, after import.
        if known_models.is_current() or any(ours in hint for ours in NAMES):
            yield Problem(_IMAGE_NAME, f"no model is called '{name}'", hint or "timm.list_models() prints what exists")


def check_volume_model(data: DataSection, model: ModelSection) -> Iterator[Problem]:
    name, geometry = model.image.name, data.geometry
    if not is_volumetric(name):
        if isinstance(geometry, VolumeGeometry) and known_models.is_known(name):
            what = f"'{name}' takes images, data.geometry makes volumes"
            yield Problem(_IMAGE_NAME, what, "use voxvit_*, i3d_* or swin3d_*, or kind: image, or kind: slice")
        return
    if not isinstance(geometry, VolumeGeometry):
        yield Problem(
            _IMAGE_NAME, f"'{name}' takes volumes, data.geometry makes images", "use a timm name, or kind: volume"
        )
        return
    try:
        tag = parse(name)
    except ValueError:
        return  # check_model_name reports it
    windows, size, patch = len(geometry.windows), tag.grid, tag.patch
    if windows != tag.channels and geometry.scans_per_study == 1:  # otherwise: checks_studies
        yield Problem(
            ("data", "geometry", "windows"),
            f"{windows} windows make {windows} channels, but the model's tag says c-{tag.channels}",
            f"write c-{windows} in model.image.name, or list {tag.channels} windows",
        )
    if len(data.eval_view.size) == 3 and data.eval_view.size != size:
        yield Problem(
            ("data", "eval_view", "size"),
            f"{_times(data.eval_view.size)} differs from the model's native size i-{_times(size)}",
            "make them equal: the release states one size",
        )
    if len(data.train_view.size) == 3 and any(v % p for v, p in zip(data.train_view.size, patch, strict=True)):
        yield Problem(
            ("data", "train_view", "size"),
            f"{_times(data.train_view.size)} is not a multiple of the model's patch p-{_times(patch)}",
            "change the size or the patch",
        )


def check_views(data: DataSection) -> Iterator[Problem]:
    volume = isinstance(data.geometry, VolumeGeometry)
    for key, view in (("train_view", data.train_view), ("eval_view", data.eval_view)):
        if len(view.size) != (3 if volume else 2):
            yield Problem(("data", key, "size"), f"{len(view.size)} numbers for {'D H W' if volume else 'H W'}")
    if data.train_view.kind in ("sliding", "multi", "slices"):
        yield Problem(("data", "train_view", "kind"), "training reads one region a study, not several crops", "random")
    sliced = isinstance(data.geometry, SliceGeometry)
    for key, view in (("train_view", data.train_view), ("eval_view", data.eval_view)):
        if view.kind == "slices" and not sliced:
            what = "slices are of a volume that is seen slice by slice (data.geometry.kind: slice)"
            yield Problem(("data", key, "kind"), what, "use centre, resize, sliding or multi")
        if view.kind != "slices" and view.slices != 1:
            yield Problem(("data", key, "slices"), f"would be ignored: kind is {view.kind}", "write kind: slices")
    if sliced and data.eval_view.kind in ("sliding", "multi"):
        what = f"{data.eval_view.kind} crops are for volumes and images"
        yield Problem(("data", "eval_view", "kind"), what, "use centre, resize or slices")
    elif data.eval_view.kind == "sliding" and not volume:
        yield Problem(("data", "eval_view", "kind"), "sliding crops are for volumes", "use multi")
    if data.eval_view.merge == "max":
        yield Problem(("data", "eval_view", "merge"), "features of crops are averaged; max is for scores", "use mean")
    if data.eval_view.kind == "random":
        yield Problem(
            ("data", "eval_view", "kind"), "scores would depend on where the crop falls", "use centre, sliding or multi"
        )
    if isinstance(data.geometry, VolumeGeometry | SliceGeometry):
        for i, (low, high) in enumerate(data.geometry.windows):
            if not low < high:
                yield Problem(
                    ("data", "geometry", "windows", i), f"({low:g}, {high:g}) is empty: low must be below high"
                )
            if data.geometry.windows_in == "percentile" and not {low, high} <= set(PERCENTILES):
                yield Problem(
                    ("data", "geometry", "windows", i),
                    f"({low:g}, {high:g}) are not percentiles that are stored with volumes",
                    "use " + ", ".join(f"{p:g}" for p in PERCENTILES),
                )
    if isinstance(data.geometry, VolumeGeometry):
        if not all(s > 0 for s in data.geometry.spacing_mm or ()):
            yield Problem(("data", "geometry", "spacing_mm"), "spacings must be positive millimetres")
        return
    if isinstance(data.geometry, SliceGeometry):
        if len(data.geometry.windows) not in (1, 3):
            what = f"{len(data.geometry.windows)} windows for the three channels of an image"
            yield Problem(("data", "geometry", "windows"), what, "one for all of them, or three")
        if not data.geometry.span[0] < data.geometry.span[1]:
            yield Problem(("data", "geometry", "span"), "the first number must be below the second")
    mode = "RGB" if isinstance(data.geometry, SliceGeometry) else data.geometry.mode
    channels = len(mode)
    for key in ("mean", "std"):
        if len(getattr(data.geometry, key)) != channels:
            yield Problem(("data", "geometry", key), f"needs {channels} numbers for mode {mode}")
    if len(data.eval_view.size) == 2 and data.eval_view.size != data.geometry.size:
        yield Problem(
            ("data", "eval_view", "size"),
            f"{_times(data.eval_view.size)} differs from data.geometry.size {_times(data.geometry.size)}",
            "make them equal: the release states one size",
        )


def check_splits(data: DataSection) -> Iterator[Problem]:
    s = data.splits
    for key, other in (("select", "train"), ("test", "train"), ("test", "select")):
        if getattr(s, key) == getattr(s, other):
            what = f"equal to splits.{other}: its scores would be optimistic"
            yield Problem(("data", "splits", key), what, "name another split")


def objective_names() -> tuple[str, ...]:
    """Built-in objectives: those of the schema, and every file in pretrain/objectives."""
    folder = Path(__file__).with_name("objectives")
    files = {f.stem for f in folder.glob("*.py") if not f.stem.startswith("_") and f.stem != "base"}
    return tuple(sorted(files | set(OBJECTIVE_OPTIONS)))


def check_objectives(objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    for i, objective in enumerate(objectives):
        path, name = ("objectives", i, "name"), objective.name
        if ":" in name:
            package = name.partition(":")[0].partition(".")[0]
            if not package.isidentifier() or importlib.util.find_spec(package) is None:
                yield Problem(path, f"no module '{package}' can be imported", "install it or run beside it")
        elif name not in objective_names():
            hint = closest(name, objective_names()) or f"one of {', '.join(objective_names())}"
            yield Problem(path, f"no objective is called '{name}'", f"{hint} (yours: package.module:Class)")
    if objectives and not any(o.weight > 0 for o in objectives):
        yield Problem(("objectives",), "every weight is 0: nothing would be learnt", "give one a weight above 0")


def check_units(data: DataSection, model: ModelSection, objectives: Sequence[ObjectiveSection]) -> Iterator[Problem]:
    have = {
        "report": data.units.report,
        "sentence": data.units.sentences,
        "section": data.units.sections,
        "caption": data.units.captions or data.units.templates is not None,
    }
    if data.units.templates is not None:
        from data_shards.captions import load_templates
        from data_shards.errors import DataError

        try:
            load_templates(data.units.templates)
        except DataError as error:
            yield Problem(("data", "units", "templates"), error.what, error.fix)
    if not any(have.values()) and model.text is not None:
        yield Problem(("data", "units"), "no kind of text is switched on", "set report or sentences to true")
    have["section"] |= data.units.alternate is not None
    switch = {"report": "report", "sentence": "sentences", "section": "sections", "caption": "captions"}
    for i, objective in enumerate(objectives):
        known = OBJECTIVE_OPTIONS.get(objective.name)
        if known is None:
            continue
        if objective.options.get("text", "units") != "units":  # it reads reports
            continue
        usual = known.model_fields.get("units")
        wanted = objective.options.get("units", usual.default if usual else ())
        for unit in wanted if isinstance(wanted, list | tuple) else ():
            if not have.get(str(unit), True):
                what = f"{objective.name} compares with {unit} units, which data.units does not make"
                yield Problem(("objectives", i), what, f"set data.units.{switch[str(unit)]}: true")


def check_text(model: ModelSection) -> Iterator[Problem]:
    text = model.text
    if text is not None and text.hf_name is None and text.width % text.heads:
        yield Problem(("model", "text", "heads"), f"{text.heads} heads do not divide width {text.width}")
    config = "config.json" if text is None else "open_clip_config.json"
    if model.init is not None and not (Path(model.init).expanduser() / config).is_file():
        kind = "a release folder" + (" of an image tower alone" if text is None else "")
        yield Problem(("model", "init"), f"'{model.init}' is not {kind}", "name a folder made by encoders.release")


def check_frozen_text(model: ModelSection, optim: OptimSection) -> Iterator[Problem]:
    if model.text is None or model.text.cached is None:
        return
    at = ("model", "text", "cached")
    if optim.lr_multipliers.text != 0:
        yield Problem(at, "embeddings are kept, but the text tower is trained", "set optim.lr_multipliers.text to 0")
    if model.init is None and model.pretrained is None and model.text.hf_name is None:
        fix = "name model.init, model.pretrained or model.text.hf_name"
        yield Problem(at, "a frozen tower of random weights says nothing", fix)


def check_pretrained_file(model: ModelSection) -> Iterator[Problem]:
    image, at = model.image, ("model", "image", "pretrained_file")
    if image.pretrained_file is None:
        return
    others = image.name != image.name.lower() and known_models.is_known(image.name)  # open_clip's own
    if others or (is_volumetric(image.name) and not image.name.startswith("swin3d")):
        fix = "use swin3d_tiny or a timm tower of images, or model.init: a release"
        yield Problem(at, f"'{image.name}' cannot start from a file", fix)
    elif not Path(image.pretrained_file).expanduser().is_file():
        yield Problem(at, f"no file '{image.pretrained_file}'", "which files there are: docs/encoders.md")
    if image.pretrained:
        yield Problem(at, "would overwrite the published weights of pretrained: true", "leave one of them out")
    if model.init is not None:
        yield Problem(at, "would overwrite part of the release in model.init", "leave one of them out")


def check_schedule(optim: OptimSection, train: TrainSection) -> Iterator[Problem]:
    if optim.warmup_steps >= train.steps:
        what = f"{optim.warmup_steps} is not below train.steps {train.steps}: the peak rate is never reached"
        yield Problem(("optim", "warmup_steps"), what, "shorten the warm-up")
    if not any(optim.lr_multipliers.model_dump().values()):
        yield Problem(("optim", "lr_multipliers"), "every factor is 0: nothing would be trained", "give one above 0")
    if optim.muon is not None and train.strategy == "fsdp2":
        what = "Muon orthogonalises whole matrices, and fsdp2 cuts them"
        yield Problem(("optim", "muon"), what, "set it to null, or train.strategy to ddp")
    if not all(0 <= b < 1 for b in optim.betas):
        yield Problem(("optim", "betas"), "each beta must be at least 0 and below 1")


def task_names() -> tuple[str, ...]:
    """Packaged zero-shot tasks."""
    package = importlib.util.find_spec("eval_zero_shot")
    roots = package.submodule_search_locations if package else None
    return tuple(sorted(f.stem for root in roots or () for f in Path(root, "tasks").glob("*.yaml")))


def check_task(evaluate: EvaluateSection) -> Iterator[Problem]:
    yield from _known_task(("evaluate", "task"), evaluate.task)


def check_held_out_tasks(finish: FinishSection | None) -> Iterator[Problem]:
    for i, one in enumerate(finish.held_out if finish else ()):
        yield from _known_task(("finish", "held_out", i, "task"), one.task)


def _known_task(at: tuple[str | int, ...], task: str | None) -> Iterator[Problem]:
    if task is None or task in task_names() or (task.endswith((".yaml", ".yml")) and Path(task).is_file()):
        return
    hint = closest(task, task_names()) or f"one of {', '.join(task_names())}, or the path of a task YAML"
    yield Problem(at, f"no task '{task}'", hint)


def _times(size: Sequence[int]) -> str:
    return "x".join(str(s) for s in size)


CHECKS: tuple[Callable[..., Iterator[Problem]], ...] = (
    check_source,
    check_stratified,
    check_views,
    check_splits,
    check_model_name,
    check_volume_model,
    check_studies,
    check_start,
    check_pretrained,
    check_text,
    check_frozen_text,
    check_pretrained_file,
    check_objectives,
    check_units,
    check_images_alone,
    check_image_views,
    check_alternation,
    check_labels,
    check_positives,
    check_once,
    check_matching,
    check_schedules,
    check_report,
    check_token_dropout,
    check_schedule,
    check_task,
    check_finish,
    check_held_out_tasks,
)


def run(sections: dict[str, Any]) -> list[Problem]:
    """Problems of all checks whose sections (parameters by name) are present."""
    problems: list[Problem] = []
    for check in CHECKS:
        wanted = list(inspect.signature(check).parameters)
        if all(name in sections for name in wanted):
            problems += check(*(sections[name] for name in wanted))
    return problems
