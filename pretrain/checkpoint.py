"""Checkpoints as folders: written aside, flushed, then renamed, so that a name always means a whole checkpoint.

RUN/checkpoints/step-00000100/  encoders.safetensors   the dual encoder that is scored and released
                                heads.safetensors      released heads, where an objective has them
                                model.json             how to rebuild it: open_clip's model_cfg, geometry, view
                                recipe.yaml
                                trainer.ckpt           optimiser, objectives, counters (never read by a release)
RUN/checkpoints/last, best  -> links to such folders
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
ENCODERS, HEADS, MODEL, RECIPE, TRAINER = (
    "encoders.safetensors",
    "heads.safetensors",
    "model.json",
    "recipe.yaml",
    "trainer.ckpt",
)
ASIDE = ".writing-"
NEARLY_FULL = 1 << 20  # bytes free when a write has failed for lack of them


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read whole."""


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def write(
    root: Path,
    step: int,
    encoders: dict[str, Tensor],
    heads: dict[str, Tensor],
    model: dict[str, Any],
    recipe: str,
    trainer: dict[str, Any],
) -> Path:
    """Write one checkpoint under `root` and return its folder. An existing one of the same step is replaced.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was there before is untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target, aside = root / folder_name(step), root / f"{ASIDE}{folder_name(step)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_file({k: v.contiguous() for k, v in encoders.items()}, aside / ENCODERS)
        if heads:
            save_file({k: v.contiguous() for k, v in heads.items()}, aside / HEADS)
        (aside / MODEL).write_text(json.dumps(model, indent=1, sort_keys=True))
        (aside / RECIPE).write_text(recipe)
        torch.save({"format": FORMAT, **trainer}, aside / TRAINER)
        for file in aside.iterdir():
            _flush(file)
        _swap(aside, target)
        _flush(root)
    except (OSError, RuntimeError, SafetensorError) as error:
        full = root.is_dir() and shutil.disk_usage(root).free < NEARLY_FULL
        shutil.rmtree(aside, ignore_errors=True)
        # torch.save says "unexpected pos 768 vs 662" when the disk is full
        reason = os.strerror(errno.ENOSPC) if full else getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(
            f"checkpoint of step {step} could not be written: {reason}\n"
            "  why: work since the last whole checkpoint would be lost if the run ended now\n"
            "  fix: free space under the run folder; earlier checkpoints there are whole"
        ) from error
    return target


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(aside: Path, target: Path) -> None:
    if target.exists():
        old = target.with_name(f"{ASIDE}old-{target.name}")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)  # what stays of it is stale, and `prune` takes it
    else:
        aside.rename(target)


def link(root: Path, name: str, target: Path) -> None:
    """Point `root/name` at a checkpoint, atomically."""
    temporary = root / f"{ASIDE}{name}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, root / name)


def read_trainer(folder: Path) -> dict[str, Any]:
    """The trainer's state, without unpickling anything but tensors and plain containers.

    Raises:
        CheckpointError: missing, damaged, of another format, or holding objects that would run code.
    """
    file = folder / TRAINER
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder.name} has no {TRAINER}: a release cannot be resumed, only a run can") from error
    except Exception as error:
        raise CheckpointError(
            f"{folder.name}/{TRAINER} cannot be read: {type(error).__name__}\n"
            "  why: it is damaged, or it holds pickled objects, which could run code\n"
            "  fix: resume from an older checkpoint folder of this run"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{folder.name}/{TRAINER} has another format than this version writes ({FORMAT})")
    return state


def prune(root: Path, keep: set[str], on_error: Callable[[str], None] = print) -> None:
    """Delete step folders that are neither kept nor linked, and what an interrupted write left. Failures are only
    reported."""
    linked = {os.readlink(p) for p in root.iterdir() if p.is_symlink()}
    for path in root.iterdir():
        stale = path.name.startswith(ASIDE)
        if path.is_symlink() or not path.is_dir():
            continue
        if stale or (path.name.startswith("step-") and path.name not in keep | linked):
            try:
                if not stale:  # out of sight first: a folder half-deleted must not have a checkpoint's name
                    path = path.rename(root / f"{ASIDE}old-{path.name}")
                shutil.rmtree(path)
            except OSError as error:
                on_error(f"warning: old checkpoint {path.name} could not be deleted: {error.strerror}")
