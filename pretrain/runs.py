"""The run folder: where a run keeps its recipe, environment, numbers, checkpoints, results and release."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

from pretrain.config import dump
from pretrain.errors import ConfigError
from pretrain.schema import Recipe

RECIPE, ENVIRONMENT, CHECKPOINTS, RESULTS, RELEASE = "recipe.yaml", "environment.json", "checkpoints", "results", "release"
RUN_VARIABLE = "VOXCLIP_RUN"  # the ranks of one run share the folder's name through it
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


def create(folder: Path, recipe: Recipe) -> None:
    """Make the folder and write down recipe and environment.

    Raises:
        ConfigError: a run of this name exists.
    """
    if (folder / RECIPE).exists():
        raise ConfigError(
            f"output.run: a run exists at {folder}",
            why="its checkpoints and results would be mixed with new ones",
            fix=f"go on with it (--resume {folder}) or choose another name (--output.run NAME)",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / ENVIRONMENT, json.dumps(environment(), indent=1))
    _write(folder / RECIPE, dump(recipe))


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The last whole checkpoint of a run; None where it was stopped before the first.

    Raises:
        ConfigError: not a run folder.
    """
    if not (folder / RECIPE).is_file():
        raise ConfigError(
            f"--resume {folder}: no run there ({RECIPE} is missing)",
            fix="name a folder under output.root, such as runs/ct3d-20260101-120000",
        )
    last = folder / CHECKPOINTS / "last"
    return last.resolve() if last.exists() else None


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
