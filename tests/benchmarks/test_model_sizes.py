"""Sizes of recipes: from real modules, with what training adds."""

from __future__ import annotations

from typing import Any

import pytest
import timm

import encoders
from benchmarks import model_sizes

assert encoders.load
SMALL = [
    "model.image.name=voxvit_tiny.p-8x24x24_i-32x96x96_c-3_a-slice3_l-3", "data.eval_view.size=[32, 96, 96]",
    "data.train_view.size=[32, 96, 96]", "model.text.layers=1", "model.text.width=64", "model.text.heads=2",
    "model.image.inflate=null",
]  # fmt: skip
PLAIN = ["objectives=[{name: contrastive}]", "train.chunk=null", "model.image.token_dropout_finish=0"]


def test_training_counts_what_the_recipe_does() -> None:
    def training(*words: str) -> float:
        return model_sizes.measure("ct3d_base.yaml", [*SMALL, *words]).training

    dropped = training(*PLAIN)
    whole = training(*PLAIN, "model.image.token_dropout=0")
    found = model_sizes.measure("ct3d_base.yaml", [*SMALL, *PLAIN])
    assert whole > dropped > found.forward
    eight, two = (training(*PLAIN[:1], f"train.chunk={chunk}", PLAIN[2]) for chunk in (32, 128))
    assert eight - dropped == pytest.approx(7 / 4 * (two - dropped))  # all parts but one go through the encoders twice
    assert two > dropped
    teacher = training("objectives=[{name: contrastive}, {name: distillation}]", *PLAIN[1:])
    assert teacher - dropped == pytest.approx(found.forward)
    assert training("objectives=[{name: contrastive}, {name: masked_image}]", *PLAIN[1:]) > dropped
    tower = timm.create_model(found.tower)
    assert found.image == sum(p.numel() for p in tower.parameters()) + 192 * 512 + 512


def test_the_table_and_its_arithmetic(capsys: Any) -> None:
    assert model_sizes.hours(1e12, 1.0, 8) == pytest.approx(24_128 * 20 / 989 / 8 / 3600)
    assert "ct3d.yaml" in model_sizes.volume_recipes() and "xray2d.yaml" not in model_sizes.volume_recipes()
    assert model_sizes.main(["ct3d.yaml"]) == 0
    said = capsys.readouterr().out
    assert "| ct3d | voxvit_tiny" in said and "EFLOP" in said
