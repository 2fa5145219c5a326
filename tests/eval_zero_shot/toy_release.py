"""A release with random weights for the studies of conftest."""

from __future__ import annotations

from pathlib import Path

import torch

from data_shards.preprocess import Geometry
from encoders.dual import build_dual
from encoders.heads import describe_head
from encoders.heads.attended import AttendedPooling
from encoders.release import write_release

from .conftest import GEOMETRY, VIEW


def write_toy_release(
    folder: Path, pool: str = "mean", seed: int = 0, geometry: Geometry = GEOMETRY, tuned: float = 0.0,
    attended: bool = False,
) -> Path:  # fmt: skip
    """A volume encoder of the smallest size, tokens pooled as said. tuned: noise on its weights, as if it were the same
    model after more training. attended: with a head of that name."""
    torch.manual_seed(seed)
    name = f"voxvit_tiny.p-2x4x4_i-4x8x8_c-1_o-{pool}_l-1"
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 8}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    dual = build_dual(config)
    with torch.no_grad():
        for parameter in dual.parameters():
            parameter += tuned * torch.randn_like(parameter)
    if not attended:
        return write_release(folder, dual.clip.state_dict(), config, geometry, VIEW)
    head = AttendedPooling(dual.clip.visual.trunk.num_features, 8, heads=2)
    return write_release(
        folder, dual.clip.state_dict(), config, geometry, VIEW, heads={"attended": describe_head(head)},
        head_weights={f"attended.{name}": weight for name, weight in head.state_dict().items()},
    )  # fmt: skip
