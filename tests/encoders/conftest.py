"""Small dual encoders, volumes and releases for the tests of `encoders`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import encoders
from data_shards.preprocess import Geometry, PlanarGeometry, View
from encoders.dual import DualEncoder, build_dual
from encoders.release import write_release

VOXVIT = "voxvit_tiny.p-4x8x8_i-8x16x16_c-2_l-2"
GEOMETRY = Geometry(spacing_mm=(6.0, 5.0, 5.0), windows=((-1000.0, 200.0), (-160.0, 240.0)))
VIEW = View("centre", (8, 16, 16))
TEXTS = (
    "no pleural effusion .",
    "small left pleural effusion with adjacent atelectasis of the lower lobe ; heart size is normal .",
    "normal",
    "3.2 cm cyst in segment VII , unchanged .",
    "spleen enlarged .",
)


def config(image: str | dict[str, Any], context: int = 48, **text: Any) -> dict[str, Any]:
    """open_clip's model_cfg: a timm name, or open_clip's own vision_cfg, beside a two-layer causal text tower."""
    if isinstance(image, str):
        image = {"timm_model_name": image, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    tower = {"context_length": context, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, **text}
    return {"embed_dim": 24, "custom_text": True, "vision_cfg": {"image_size": 32, **image}, "text_cfg": tower}


@pytest.fixture
def model_cfg() -> Callable[..., dict[str, Any]]:
    return config


@pytest.fixture
def make_dual() -> Callable[..., DualEncoder]:
    """A seeded dual encoder whose weights are all away from zero, so that no part of it is without effect."""

    def make(image: str | dict[str, Any] = VOXVIT, **text: Any) -> DualEncoder:
        torch.manual_seed(0)
        dual = build_dual(config(image, **text)).eval()
        with torch.no_grad():
            for parameter in dual.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        return dual

    return make


@pytest.fixture
def geometry() -> Geometry:
    return GEOMETRY


@pytest.fixture
def view() -> View:
    return VIEW


@pytest.fixture
def planar() -> PlanarGeometry:
    return PlanarGeometry(size=(32, 32))


@pytest.fixture
def texts() -> tuple[str, ...]:
    return TEXTS


@pytest.fixture
def released(tmp_path: Path, make_dual: Callable[..., DualEncoder]) -> tuple[Path, DualEncoder]:
    """A released 3D dual encoder and the one it was made from."""
    dual = make_dual()
    return write_release(tmp_path / "release", dual.clip.state_dict(), dual.model_cfg, GEOMETRY, VIEW), dual


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    """A CT-like NIfTI, stored left-posterior-superior with anisotropic voxels."""
    import nibabel

    hu = np.random.default_rng(0).normal(0, 400, (40, 36, 20)).astype(np.int16)
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([-2.5, -2.5, 4.0, 1.0])), path)
    return path


@pytest.fixture
def packed_batch() -> Callable[..., Any]:
    """Packed texts as `DualEncoder.encode_text` takes them."""
    from eval_zero_shot.embedding import pack_texts

    return pack_texts


assert encoders.load
