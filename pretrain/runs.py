"""The run folder: where a run keeps its recipe, environment, numbers, checkpoints, results and release."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from pretrain.config import dump
from pretrain.errors import ConfigError
from pretrain.schema import Recipe

RECIPE, ENVIRONMENT, FILES = "recipe.yaml", "environment.json", "files.json"
CHECKPOINTS, RESULTS, RELEASE, REPORT = "checkpoints", "results", "release", "report.html"
BASE, ADAPTED = "base", "adapted"  # with `finish`: releases of the weights at the start and at the end
SMOKE = "smoke"  # marks a run of --smoke: the next run of its name takes its place
RUN_VARIABLE = "VOXCLIP_RUN"  # the ranks of one run share the folder's name through it
# What a resumed run may do otherwise: the weights do not depend on it. (Moved shards are known by their manifest.)
MAY_CHANGE = re.compile(
    r"data\.(workers|cache|max_damaged|source\.path|source\.sources\.\d+\.path)"
    r"|(evaluate|checkpoint|output)\..*|finish(\..*)?|model\.init|train\.(nonfinite|max_nonfinite)"
)
PACKAGES = ("torch", "lightning", "open_clip_torch", "timm", "monai", "webdataset", "torchmetrics", "numpy", "blosc2")


def name_run(recipe: Recipe) -> Path:
    """The folder of a new run, the same on every rank."""
    if RUN_VARIABLE in os.environ:
        return Path(os.environ[RUN_VARIABLE])
    label = recipe.output.run or f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    job = os.environ.get("SLURM_JOB_ID")
    if job and recipe.output.run is None:
        label = f"{recipe.name}-slurm{job}"  # ranks that SLURM started cannot pass a time of day to each other
    return Path(recipe.output.root) / label


def remove_smoke(folder: Path) -> None:
    """Remove a run of --smoke that was left under this name."""
    if (folder / SMOKE).exists():
        print(f"{folder} holds a smoke run: it is replaced", file=sys.stderr)
        shutil.rmtree(folder)


def refuse_existing(folder: Path) -> None:
    """Raise ConfigError where a run of this name exists."""
    if (folder / RECIPE).exists():
        raise ConfigError(
            f"output.run: a run exists at {folder}",
            why="its checkpoints and results would be mixed with new ones",
            fix=f"go on with it (--resume {folder}) or choose another name (--output.run NAME)",
        )


def require_run(folder: Path) -> None:
    """Raise ConfigError where there is no run to go on with."""
    if not (folder / RECIPE).is_file():
        raise ConfigError(
            f"--resume {folder}: no run there ({RECIPE} is missing)",
            fix="name a folder under output.root, such as runs/ct3d-20260101-120000",
        )


def create(folder: Path, recipe: Recipe) -> None:
    """Make the folder and write down recipe, environment and the sha256 of the files that the recipe names.

    Raises:
        ConfigError: a run of this name exists.
    """
    refuse_existing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / ENVIRONMENT, json.dumps(environment(), indent=1))
    _write(folder / FILES, json.dumps(named_files(recipe), indent=1))
    _write(folder / RECIPE, dump(recipe))


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The last whole checkpoint of a run; None where it was stopped before the first.

    `last` may point nowhere when the machine died while links were being moved; a step folder is whole by its name.
    """
    last = folder / CHECKPOINTS / "last"
    if last.exists():
        return last.resolve()
    return max((folder / CHECKPOINTS).glob("step-*"), default=None)


def refuse_changes(checkpoint: Path, recipe: Recipe) -> None:
    """Raise ConfigError where the run's recipe was edited, since the checkpoint was written, in what the weights depend
    on."""
    trained, now = (_flat(yaml.safe_load(text)) for text in ((checkpoint / RECIPE).read_text(), dump(recipe)))
    sizes = [(r["train.batch_size"], r["train.devices"]) for r in (trained, now)]
    (batch, devices), (batch_now, devices_now) = sizes
    dealt_anew = batch * devices == batch_now * devices_now  # the same samples a step: the stream says what it does
    wrong = [
        f"{key} {trained.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(trained.keys() | now.keys())
        if trained.get(key) != now.get(key)
        and not MAY_CHANGE.fullmatch(key)
        and not (dealt_anew and key in ("train.batch_size", "train.devices"))
    ]
    if not dealt_anew:
        wrong.append(
            f"train.batch_size x train.devices {batch} x {devices} = {batch * devices} -> "
            f"{batch_now} x {devices_now} = {batch_now * devices_now} (ranks may change, their product with it may not)"
        )
    if wrong:
        raise ConfigError(
            f"--resume: {RECIPE} differs from the one {checkpoint.name} was trained with: {'; '.join(wrong)}",
            why="samples would be seen twice or never, and no single recipe would have made these weights",
            fix="put the old values back, or start a new run from the weights: --config ... --model.init RUN/release",
        )


def named_files(recipe: Recipe) -> dict[str, str]:
    """Key of the recipe -> sha256 of the file it names, of files that say what is trained on: caption templates,
    selections, names and hierarchy of labels, labels that make classes. Raises ConfigError where one cannot be read."""
    from data_shards.captions import templates_file

    flat = _flat(recipe.model_dump(mode="json"))
    for i, objective in enumerate(recipe.objectives):
        strange = {"labels": "labels", "contrastive": "names|hierarchy"}.get(objective.name, "names|hierarchy|labels")
        flat = {key: v for key, v in flat.items() if not re.fullmatch(rf"objectives\.{i}\.({strange})", key)}
    objectives = r"objectives\.\d+\.(names|hierarchy|labels)"
    files = rf"data\.units\.templates|data\.source\.(sources\.\d+\.)?selection|{objectives}"
    found = {}
    for key, value in flat.items():
        if value and re.fullmatch(files, key):
            path = templates_file(value) if key == "data.units.templates" else Path(value).expanduser()
            try:
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise ConfigError(
                    f"{key}: the file cannot be read ({type(error).__name__})", fix="check its path"
                ) from None
    return found


def refuse_changed_files(folder: Path, recipe: Recipe) -> None:
    """Raise ConfigError where a file that the recipe names has other words or rows than when the run began."""
    began, now = json.loads((folder / FILES).read_text()), named_files(recipe)
    if wrong := sorted(key for key in began.keys() | now.keys() if began.get(key) != now.get(key)):
        raise ConfigError(
            f"--resume: the file of {', '.join(wrong)} was changed since the run began",
            why="the rest of the run would see other samples or other words than its first part",
            fix="put the old file back, or start a new run from the weights: --config ... --model.init RUN/release",
        )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inside = {path: leaf for k, v in items for path, leaf in _flat(v, f"{key}.{k}" if key else str(k)).items()}
    return inside if isinstance(value, dict | list) else {key: value}


def environment() -> dict[str, object]:
    """Versions and machine, for reproduction. No host name, no user name, no environment variables."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": devices,
        "packages": versions,
    }


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)
