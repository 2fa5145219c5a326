"""Sizes from the meta device against the real thing."""

from __future__ import annotations

from typing import Any

import timm

import encoders
from benchmarks import sizes

assert encoders.load  # importing the package is what registers the names
TAG = "p-4x8x8_i-8x16x16_c-2_l-2"


def test_parameters_operations_and_memory() -> None:
    plain, light = (sizes.measure("tiny", TAG, checkpointed) for checkpointed in (False, True))
    tower = timm.create_model(f"voxvit_tiny.{TAG}")
    projection = 192 * 512
    assert plain["image"] == sum(p.numel() for p in tower.parameters()) + projection
    assert light["saved"] < plain["saved"]
    assert light["tflop"] > plain["tflop"] > 0  # computed twice instead of kept
    deeper = sizes.measure("tiny", TAG.replace("l-2", "l-4"), False)
    assert deeper["saved"] > plain["saved"] and deeper["tflop"] > plain["tflop"]


def test_other_families_of_towers() -> None:
    found = sizes.measure("tiny", "i-32x32x32_c-1_w-12_l-1", False, "swin3d")
    assert 0 < 2.5 * found["forward"] < found["tflop"]  # a backward pass is twice a forward pass, and there is text


def test_the_table(capsys: Any) -> None:
    assert sizes.main(["--models", "tiny", "--tag", TAG]) == 0
    said = capsys.readouterr().out
    assert "| tiny |" in said and "FSDP2" in said
