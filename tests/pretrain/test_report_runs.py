"""Runs with a report transformer: released, averaged, resumed, on several ranks, sharded."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file

import encoders
from encoders.report_transformer import ReportTransformer
from pretrain import build
from pretrain.config import load_recipe
from tests.pretrain.test_ranks import TWO, finish
from tests.pretrain.two_ranks import ranks_and_one

MODEL = {
    "image": {"name": "voxvit_tiny.p-8x16x16_i-16x32x32_c-1_l-1", "token_dropout": 0.5},
    "report": {"width": 24, "heads": 2, "layers": 1, "fusion_layers": 1, "feedforward": 32, "max_sentences": 64},
}
OBJECTIVES: list[dict[str, Any]] = [
    {"name": "trouble:Trouble"},
    {"name": "contrastive"},
    {"name": "report_contrastive"},
    {"name": "matching"},
    {"name": "masked_language"},
    {"name": "masked_language", "condition": "image"},
    {"name": "hierarchical", "text": "sentences", "width": 8},
]


@pytest.fixture
def runs(make_fit: Callable[..., Any], tmp_path: Path, plugins: None) -> Any:
    train = {"steps": 4, "chunk": 2}
    return make_fit(tmp_path, objectives=OBJECTIVES, model=MODEL, optim={"ema_decay": 0.5}, train=train,
                    checkpoint={"every_steps": 2})  # fmt: skip


def heads(runs: Any, name: str) -> dict[str, torch.Tensor]:
    return load_file(runs.checkpoint(name) / "heads.safetensors")


def test_a_run_is_released_with_it_and_goes_on_as_if_never_stopped(
    runs: Any, trouble: Callable[..., None], equal: Any
) -> None:
    assert runs("whole") == 0
    trouble(signal_at=2, signal=int(signal.SIGTERM))
    assert runs("stopped") == 143
    trouble()
    assert runs.resume("stopped") == 0
    assert equal(runs.weights("stopped"), runs.weights("whole"))
    assert equal(heads(runs, "stopped"), heads(runs, "whole"))
    assert runs.metrics("stopped") == runs.metrics("whole")

    state = torch.load(runs.checkpoint("whole") / "trainer.ckpt", weights_only=True)
    trained, averaged = state["trained_report"], heads(runs, "whole")
    assert {f"report.{key}" for key in trained} == {key for key in averaged if key.startswith("report.")}
    for key in ("layers.0.qkv.weight", "fusion.0.kv.weight", "predict.bias", "matched.weight", "image_in.0.weight"):
        assert not torch.equal(trained[key], averaged[f"report.{key}"]), key
    release = encoders.load(runs.folder("whole") / "release")
    report = release.heads["report"]
    assert isinstance(report, ReportTransformer) and release.tokenizer is not None
    assert equal(report.state_dict(), {key: averaged[f"report.{key}"] for key in trained})
    found = report.encode([["No effusion.", "The heart is large."]], release.tokenizer)
    assert found.report_RD is not None and found.report_RD.shape == (1, 16) and found.words_WD is None
    plain = open_clip.create_model(f"local-dir:{runs.folder('whole') / 'release'}")
    assert not [name for name in plain.state_dict() if "report" in name]

    recipe = load_recipe(str(runs.recipe), [f"model.init={runs.folder('whole') / 'release'}"])
    started = build.build_model(recipe).report
    assert started is not None and torch.equal(started.tokens.weight, averaged["report.tokens.weight"])


@pytest.mark.full
def test_two_ranks_have_the_gradients_of_one_process(tiny: Any, tmp_path: Path) -> None:
    first, second, one = ranks_and_one("two_ranks_reports", tiny.recipe, tmp_path)
    for a, b, whole in zip(first, second, one, strict=True):
        torch.testing.assert_close(a["loss"], whole["loss"])
        assert a["logged"] == b["logged"] == pytest.approx(whole["logged"], rel=1e-5)
        assert a["gradients"].keys() == b["gradients"].keys() >= whole["gradients"].keys()
        assert not any(a["gradients"][n].any() for n in a["gradients"].keys() - whole["gradients"].keys()), "DDP waits"
        for name, gradient in whole["gradients"].items():
            assert torch.equal(a["gradients"][name], b["gradients"][name])
            torch.testing.assert_close(a["gradients"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
        assert any(bool(g.any()) for n, g in whole["gradients"].items() if n.startswith("dual.report.layers"))


@pytest.mark.full
@pytest.mark.parametrize("chunk", [None, 1])
def test_a_sharded_run_is_the_run_of_two_ranks(make_fit: Callable[..., Any], tmp_path: Path, chunk: int | None) -> None:
    model = {**MODEL, "image": {"name": "voxvit_tiny.p-8x16x16_i-16x32x32_c-1_l-1"}}
    runs = make_fit(tmp_path, objectives=OBJECTIVES[1:], model=model, optim={"ema_decay": 0.5},
                    train={"steps": 6, "batch_size": 2, "chunk": chunk})  # fmt: skip
    for strategy in ("ddp", "fsdp2"):
        code, said = finish(runs.start(strategy, **TWO, train__strategy=strategy))
        assert code == 0, said
    ours, theirs = ([row.rsplit(",", 1) for row in runs.metrics(name)[1:]] for name in ("fsdp2", "ddp"))
    assert [name for name, _ in ours] == [name for name, _ in theirs] and any("6,loss" in name for name, _ in ours)
    for (name, x), (_, y) in zip(ours, theirs, strict=True):
        assert float(x) == pytest.approx(float(y), rel=1e-4), name
    for key, value in heads(runs, "ddp").items():
        torch.testing.assert_close(heads(runs, "fsdp2")[key], value, rtol=1e-3, atol=2e-5, msg=key)
