"""The supervised ceiling: its loss, and a short run beside a zero-shot one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.phantom_ceiling import main
from benchmarks.scores import outcome_of


def test_unknown_labels_do_not_count() -> None:
    from benchmarks.supervised import masked_bce

    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    labels = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
    loss = masked_bce(logits, labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels[:, 0])
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert logits.grad is not None and logits.grad[:, 1].tolist() == [0.0, 0.0]
    assert masked_bce(logits, torch.full((2, 2), float("nan"))).item() == 0.0


def test_a_recipe_without_findings_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", "--evaluate.task", "null"]) == 1
    assert "--evaluate.task NAME" in capsys.readouterr().err


@pytest.mark.full
def test_ceiling_beside_a_zero_shot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pretrain import fit

    common = ["--smoke", "--data.cache", str(tmp_path / "cache"), "--data.source.studies", "60"]
    run = tmp_path / "runs" / "zero_shot"
    fit_words = ["--config", "ct3d.yaml", "--output.root", str(run.parent), "--output.run", run.name]
    assert fit.main([*fit_words, *common]) == 0
    out = tmp_path / "ceiling"
    assert main(["--out", str(out), "--beside", str(run), "--optim.ema_decay", "0.5", *common]) == 0
    found = json.loads((out / "ceiling.json").read_text())
    zero_shot = outcome_of(run / "results")
    assert tuple(found["findings"]) == zero_shot.classes
    assert found["zero_shot_minus_ceiling"]["value"] == pytest.approx(zero_shot.main.value - found["macro"]["value"])
    assert f"{found['macro']['value']:.3f}" in capsys.readouterr().out

    words = [
        "--out",
        str(out),
        "--beside",
        str(run),
        *common,
        "--data.splits.test",
        "val",
        "--data.splits.select",
        "test",
    ]
    assert main(words) == 1
    assert "other studies" in capsys.readouterr().err
