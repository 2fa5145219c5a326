"""What the config files of a release say: open_clip's and timm's own keys, and ours beside them."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from encoders.errors import ReleaseError
from encoders.folder import SCHEMA_VERSION
from encoders.volumetric import is_volumetric, parse

if TYPE_CHECKING:
    from data_shards.preprocess import AnyGeometry, View

PACKAGES = ("voxclip", "torch", "open_clip_torch", "timm")


def released_cfg(model_cfg: dict[str, Any], geometry: AnyGeometry, view: View) -> dict[str, Any]:
    """`model_cfg` as a release states it: no downloads, and the size the encoder really sees."""
    cfg = copy.deepcopy(model_cfg)
    if cfg.get("custom_text") is not True:
        raise ReleaseError(
            "model_cfg does not say custom_text: true",
            "open_clip would build another class, with other weight names",
            "build the model with encoders.dual.build_dual",
        )
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    check_input(vision.get("timm_model_name", ""), geometry, view)
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
    # open_clip 3.3 makes its transform from two numbers only and refuses three: a volume's size in plane has to do.
    size = list(view.size[1:]) if geometry.kind == "volume" else list(geometry.size)  # type: ignore[union-attr]
    stated = size[0] if size[0] == size[1] else size
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
        vision["image_size"] = stated
    elif vision.get("image_size", 224) not in (stated, size, tuple(size)):
        raise ReleaseError(
            f"the image tower is built for {vision.get('image_size', 224)} pixels, the geometry makes {stated}",
            "open_clip would resize to the tower's size, the stream to the geometry's",
            "set data.geometry.size and model.image.image_size to the same",
        )
    return cfg


def check_input(architecture: str, geometry: AnyGeometry, view: View) -> None:
    """Refuse a geometry or view that the image tower cannot take. Raises ReleaseError."""
    tag = parse(architecture) if is_volumetric(architecture) else None
    if geometry.kind == "volume" and len(view.size) != 3:
        problem = f"view size {list(view.size)} is not D, H, W"
    elif tag and geometry.kind != "volume":
        problem = f"'{tag.name}' takes volumes, the geometry is for images"
    elif tag and tag.channels != geometry.channels:
        made = f"{len(geometry.windows)} windows"  # type: ignore[union-attr]
        if geometry.scans_per_study > 1:  # type: ignore[union-attr]
            made += f" of {geometry.scans_per_study} scans"  # type: ignore[union-attr]
        problem = f"'{tag.name}' takes {tag.channels} channels, the geometry has {made}"
    elif tag and getattr(tag, "volumes", 1) % geometry.scans_per_study:  # type: ignore[union-attr]
        problem = f"'{tag.name}' does not tell {geometry.scans_per_study} scans of a study apart"  # type: ignore[union-attr]
    elif tag and any(s % p for s, p in zip(view.size, tag.patch, strict=True)):
        problem = f"view size {list(view.size)} is not a multiple of the patch of '{tag.name}'"
    else:
        return
    raise ReleaseError(
        problem, "preprocess would make what the model refuses", "release the geometry it was trained with"
    )


def preprocess_cfg(geometry: AnyGeometry) -> dict[str, Any]:
    """open_clip's transform: ours for images. For volumes one that changes nothing of what `preprocess` made."""
    if geometry.kind == "volume":
        return {"mean": [0.0], "std": [1.0], "interpolation": "bilinear", "resize_mode": "squash"}
    if geometry.kind == "slice":  # for pictures of slices, as radiologists see them
        sliced = {key: _listed(getattr(geometry, key)) for key in ("size", "mean", "std")}
        return {**sliced, "mode": "RGB", "interpolation": "bilinear", "resize_mode": "longest", "fill_color": 0}
    if geometry.mode != "RGB":  # type: ignore[union-attr]
        raise ReleaseError(
            f"images of mode {geometry.mode} cannot be released",  # type: ignore[union-attr]
            "open_clip 3.3 makes three channels of every image",
            "use mode RGB: grey images become three equal channels",
        )
    keys = ("size", "mode", "mean", "std", "interpolation", "resize_mode")
    return {key: _listed(getattr(geometry, key)) for key in keys} | {"fill_color": 0}


def timm_input(geometry: AnyGeometry) -> dict[str, Any]:
    if geometry.kind == "volume":
        return {"mean": [0.0], "std": [1.0]}
    cfg = preprocess_cfg(geometry)
    mode = {"shortest": "center", "longest": "border", "squash": "squash"}[cfg["resize_mode"]]
    return {
        "input_size": [3, *cfg["size"]],
        "crop_pct": 1.0,
        "crop_mode": mode,
        **{k: cfg[k] for k in ("mean", "std", "interpolation")},
    }


def our_keys(geometry: AnyGeometry, view: View, provenance: dict[str, Any] | None) -> dict[str, Any]:
    """Our top-level keys, which open_clip and timm pass over."""
    return {
        "volume_cfg" if geometry.kind == "volume" else "planar_cfg": {
            "geometry": json.loads(geometry.to_json()),
            "geometry_sha256": geometry.identity,
            "view": json.loads(view.to_json()),
            "view_sha256": view.identity,
        },
        "schema_version": SCHEMA_VERSION,
        "provenance": {**(provenance or {}), "versions": _versions()},
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
