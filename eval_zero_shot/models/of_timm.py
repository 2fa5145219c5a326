"""timm image towers: features alone, for probes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.geometry import PlanarGeometry, View
from eval_zero_shot.errors import EvalError
from eval_zero_shot.models.adapter import building, loaded

if TYPE_CHECKING:
    from encoders.loading import Loaded

PACKAGES = ("timm",)


def load(kind: str, rest: str, device: str) -> Loaded:
    """A name of timm with pretrained weights, or a folder as timm's `save_for_hf` writes it (config.json, weights).

    Raises EvalError: no such name, no weights, no hub, or an input that is no RGB image.
    """
    import timm

    folder = Path(rest).expanduser()
    name = f"local-dir:{folder}" if folder.is_dir() else rest
    fix = "a name of timm.list_models(pretrained=True) where a hub is reachable, a folder with config.json and "
    fix += f"model.safetensors, or random:{rest} for a control"
    with building(f"timm's {folder.name if folder.is_dir() else rest}", fix):
        model = timm.create_model(name, pretrained=True, num_classes=0)
    return of_model(model, device)


def of_model(model: Any, device: str) -> Loaded:
    """A timm model without classifier, prepared as its own evaluation config says."""
    import timm.data

    cfg = timm.data.resolve_data_config(model=model)
    architecture = model.pretrained_cfg.get("architecture")
    about = {"package": "timm", "architecture": architecture, "data": cfg}
    return loaded(model, planar_geometry(cfg), View("centre"), None, about, device, PACKAGES)


def planar_geometry(cfg: dict[str, Any]) -> PlanarGeometry:
    """timm's evaluation transform, but for crop_pct: the shortest side is resized to the input's size itself, as for
    CLIP models, since a border of a scan is no border of a photograph. Raises EvalError for what is no RGB image."""
    if len(cfg["input_size"]) != 3 or cfg["input_size"][0] != 3:
        raise EvalError(
            f"this timm model takes {cfg['input_size']}", why="images are given in RGB", fix="wrap it (docs/models.md)"
        )
    how = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"
    squash = "squash" if cfg.get("crop_mode") == "squash" else "shortest"
    return PlanarGeometry(
        size=cfg["input_size"][1:], mean=cfg["mean"], std=cfg["std"], interpolation=how, resize_mode=squash
    )
