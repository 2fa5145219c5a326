"""Released heads come back by registered name with their own weights, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import encoders
from encoders.dual import DualEncoder
from encoders.errors import ReleaseError
from encoders.heads import build_heads, describe_head, register_head
from encoders.release import write_release


@register_head("toy")
class Toy(nn.Linear):
    """Logits of a few labels."""

    def __init__(self, width: int, labels: list[str]) -> None:
        super().__init__(width, len(labels))
        self.options = {"width": width, "labels": labels}


@pytest.fixture
def head() -> Toy:
    return Toy(24, ["cyst", "stone"])


def weights_of(head: nn.Module, name: str = "findings") -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for key, value in head.state_dict().items()}


def test_a_released_head_is_the_one_that_was_trained(
    head: Toy, tmp_path: Path, make_dual: Callable[..., DualEncoder], geometry: Any, view: Any
) -> None:
    dual, spec = make_dual(), {"findings": describe_head(head)}
    folder = write_release(
        tmp_path / "r",
        dual.clip.state_dict(),
        dual.model_cfg,
        geometry,
        view,
        heads=spec,
        head_weights=weights_of(head),
    )
    assert json.loads((folder / "heads.json").read_text()) == spec
    loaded = encoders.load(folder).heads["findings"]
    x = torch.randn(3, 24)
    assert torch.equal(loaded(x), head(x)) and not loaded.training


def test_unregistered_classes_are_refused() -> None:
    with pytest.raises(ReleaseError, match="Linear is not registered"):
        describe_head(nn.Linear(2, 2))
    with pytest.raises(ReleaseError, match="class 'os:system', which is not registered"):
        build_heads({"x": {"class": "os:system", "options": {}}}, {})


@pytest.mark.parametrize("options", [{"width": 24}, {"width": 24, "labels": ["a", "b"], "depth": 2}])
def test_options_it_does_not_take_are_refused(head: Toy, options: dict[str, Any]) -> None:
    with pytest.raises(ReleaseError, match="head 'findings' cannot be rebuilt"):
        build_heads({"findings": {"class": "toy", "options": options}}, weights_of(head))


def test_weights_must_fit_their_description(head: Toy) -> None:
    spec = {"findings": describe_head(head)}
    with pytest.raises(ReleaseError, match="cannot be rebuilt"):
        build_heads(spec, {"findings.weight": head.weight})
    with pytest.raises(ReleaseError, match=r"no described head: other\.bias"):
        build_heads(spec, weights_of(head) | {"other.bias": head.bias})


def test_a_name_belongs_to_one_class() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register_head("toy")(type("Other", (nn.Module,), {}))
