"""`encoders.load(DIR)`: a released model with its own preprocessing and tokenizer, or a refusal. Never a random
model."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_shards.preprocess import AnyGeometry, View, geometry_from_dict
from encoders.errors import ReleaseError
from encoders.folder import CONFIG, HEADS, HEADS_SPEC, LISTING, SCHEMA_VERSION, WEIGHTS, Listing, inspect, read_json
from encoders.preprocessing import Preprocess
from encoders.tokenize import BPE, HFTokenizer, Tokenize

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A release, ready to use.

    model: a `DualEncoder` (kind "clip") or a timm model (kind "timm"), in eval mode.
    preprocess: one scan to the model's input (encoders.preprocessing.Preprocess).
    tokenizer: text to token ids without padding; None for kind "timm".
    geometry, view: what `preprocess` does, comparable by `.identity`.
    config: the whole open_clip_config.json (or timm's config.json).
    sha256: of release.json; it names this release's every byte.
    heads: released heads by name.
    """

    model: Any
    preprocess: Preprocess
    tokenizer: Tokenize | None
    geometry: AnyGeometry
    view: View
    config: dict[str, Any]
    sha256: str
    kind: str
    heads: dict[str, nn.Module] = field(default_factory=dict)


def load(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    verify: bool = True,
) -> Loaded:
    """Load a release folder, of a dual encoder or of an image tower alone. Random states are left as they were.

    Args:
        precision: what the weights are converted to; None keeps them as released.
        verify: compare every file's sha256 with release.json. Missing and stray files are refused either way.

    Raises:
        ReleaseError: no release, missing weights, stray or changed files, or a model this installation cannot build.
    """
    root = Path(folder).expanduser()
    if precision is not None and precision not in DTYPES:
        raise ReleaseError(
            f"precision '{precision}' is unknown", "no such arithmetic", f"use one of {', '.join(DTYPES)}"
        )
    if not (root / LISTING).is_file() and (root / "release" / LISTING).is_file():
        raise ReleaseError(
            f"'{root.name}' has no {LISTING}: it is a run folder, not a release",
            "a run holds checkpoints beside its release, and only a release is listed and checked file by file",
            f"did you mean {root / 'release'}?",
        )
    listing = inspect(root, verify)
    config = read_json(root / CONFIG[listing.kind])
    geometry, view = _input(config)
    try:
        with torch.random.fork_rng(devices=[]):
            model, tokenizer = (_dual if listing.kind == "clip" else _timm)(root, config)
    except (
        TypeError,
        KeyError,
        RuntimeError,
        ValueError,
        AssertionError,
        OSError,
        SafetensorError,
        ImportError,
    ) as error:
        if isinstance(error, ReleaseError):
            raise
        raise ReleaseError(
            f"the release's model cannot be built: {error}",
            "part of it would stay random",
            "compare provenance.versions in its config with what is installed (pip list)",
        ) from error
    heads = _heads(root, listing)
    for module in (model, *heads.values()):
        module.to(device=device, dtype=DTYPES.get(precision or "")).eval()
    return Loaded(
        model, Preprocess(geometry, view), tokenizer, geometry, view, config, listing.sha256, listing.kind, heads
    )


def _dual(root: Path, config: dict[str, Any]) -> tuple[nn.Module, Tokenize]:
    from encoders.dual import build_dual

    cfg = copy.deepcopy(config["model_cfg"])
    text = cfg["text_cfg"]
    tokenizer: Tokenize = BPE(text["context_length"])
    if text.get("hf_model_name"):
        # The tower's config and tokenizer lie in the release, wherever it has been moved.
        text["hf_model_name"] = str(root.resolve())
        tokenizer = HFTokenizer(str(root.resolve()), text["context_length"])
    model = build_dual(cfg)
    model.model_cfg = config["model_cfg"]
    model.clip.load_state_dict(_weights(root, "clip"), strict=True)
    return model, tokenizer


def _timm(root: Path, config: dict[str, Any]) -> tuple[nn.Module, None]:
    import timm

    import encoders.voxvit  # noqa: F401  registers our names in timm

    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config.get("model_args", {}))
    model.load_state_dict(_weights(root, "timm"), strict=True)
    return model, None


def _weights(root: Path, kind: str) -> dict[str, Tensor]:
    return load_file(root / WEIGHTS[kind])


def _heads(root: Path, listing: Listing) -> dict[str, nn.Module]:
    if HEADS_SPEC not in listing.files:
        return {}
    from encoders.heads import build_heads

    return build_heads(read_json(root / HEADS_SPEC), load_file(root / HEADS))


def _input(config: dict[str, Any]) -> tuple[AnyGeometry, View]:
    stated = config.get("volume_cfg") or config.get("planar_cfg")
    try:
        if config["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {config['schema_version']}, this program reads {SCHEMA_VERSION}")
        geometry, view = geometry_from_dict(stated["geometry"]), View.from_dict(stated["view"])  # type: ignore[index]
        if (geometry.identity, view.identity) != (stated["geometry_sha256"], stated["view_sha256"]):  # type: ignore[index]
            raise ValueError("this version reads them differently than they were written")
    except (KeyError, TypeError, ValueError) as error:
        raise ReleaseError(
            f"geometry and view of the release cannot be read: {error}",
            "other preprocessing than in training turns good scores into chance",
            "install the version of this package that wrote it (provenance.versions in the config)",
        ) from error
    return geometry, view
