"""benchmarks.recipe_step on small versions of recipes: a row each, and one that does not fit is a row as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import recipe_step

SMALL = (
    "data.source={kind: phantom, studies: 40, seed: 0}", "train.batch_size=4", "train.chunk=2",
    "data.train_view.size=[16,48,48]", "data.eval_view.size=[16,48,48]", "model.image.image_size=48",
    "model.image.name=voxvit_tiny.p-8x24x24_i-16x48x48_c-3_a-slice3_l-1", "model.text.width=64", "model.text.heads=2",
    "model.text.layers=1",
)  # fmt: skip


def test_a_step_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe_step.main(["ct3d_base", "--repeats", "1", "--cache", str(tmp_path), "--set", *SMALL]) == 0
    out, err = capsys.readouterr()
    row = re.search(
        r"^\| `ct3d_base` \| 4, 2 \| ([\d.]+) \| ([\d.]+) \| ([\d.e-]+) \|.*\| [\d.]+ h \|$", out, re.MULTILINE
    )
    assert row and all(float(number) > 0 for number in row.groups())
    assert len(re.findall(r"ct3d_base: [\d.]+ s, loss [\d.]+$", err, re.MULTILINE)) == 3


def test_what_does_not_fit_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 516 MiB. More")

    monkeypatch.setattr(recipe_step, "lone_module", full)
    assert recipe_step.main(["ct3d_base", "--repeats", "1", "--cache", str(tmp_path), "--set", *SMALL]) == 0
    assert "| 4, 2 | out of memory (Tried to allocate 516 MiB) | – |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["xray2d"], "packaged recipes for volumes: ct3d, "),
        (["nothere"], "no recipe 'nothere'"),
        (["ct3d", "--device", "cuda"], "torch sees no GPU here"),
    ],
)
def test_mistakes_are_said_before_anything_runs(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        recipe_step.main(words)
    out, err = capsys.readouterr()
    assert said in err and not out
