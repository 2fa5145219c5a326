"""Untrained releases and pictures to ask about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.geometry import PlanarGeometry
from data_shards.preprocess import View
from encoders.dual import build_dual
from encoders.release import write_release

from ..conftest import GEOMETRY, VIEW
from .items import TEXT


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder of images that looks at colours, so that images differ in their answers."""
    torch.manual_seed(3)
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT}
    folder = tmp_path_factory.mktemp("planar") / "toy2d"
    weights = build_dual(config).clip.state_dict()
    weights["visual.class_embedding"] *= 0.1
    weights["visual.transformer.resblocks.0.attn.in_proj_weight"] *= 5
    return write_release(folder, weights, config, PlanarGeometry(size=(16, 16)), View("resize"))


@pytest.fixture(scope="module")
def volumetric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    vision = {"timm_model_name": "voxvit_tiny.p-2x4x4_i-4x8x8_c-1_l-1", "timm_pool": "", "timm_proj": "linear"}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**vision, "image_size": 8}, "text_cfg": TEXT}
    folder = tmp_path_factory.mktemp("volumetric") / "toy3d"
    return write_release(folder, build_dual(config).clip.state_dict(), config, GEOMETRY, VIEW)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        rng = np.random.default_rng(i)
        pixels = (rng.integers(0, 200, 3) + rng.integers(0, 56, (20, 24, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"jane_doe_{i}.png")
    return folder
