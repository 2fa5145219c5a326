"""The probe from the command line: what is in the results, the same draws for every model, leaks refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardWriter
from encoders.dual import build_dual
from encoders.release import write_release
from eval_zero_shot import EvalError
from eval_zero_shot.inputs import add_inputs, open_inputs
from eval_zero_shot.outcome import Outcome, read_results
from eval_zero_shot.probe.__main__ import main
from eval_zero_shot.probe.draws import main as draw
from eval_zero_shot.probe.protocol import Rows, score_probe
from eval_zero_shot.probe.split import Question

from ..conftest import GEOMETRY, VIEW

TASK = """
name: brightness
classes:
  bright: {positive: ["A bright scan."], negative: ["A dark scan."]}
"""


def release(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    vision = {"timm_model_name": "voxvit_tiny.p-2x4x4_i-4x8x8_c-1_l-1", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**vision, "image_size": 8}, "text_cfg": text}
    return str(write_release(folder, build_dual(config).clip.state_dict(), config, GEOMETRY, VIEW))


def shards(folder: Path) -> str:
    """Two studies a patient; `bright` can be seen; three levels of brightness; `rare` has two positives in training."""
    with ShardWriter(folder) as writer:
        for i in range(120):
            level = i % 3
            split = "train" if i < 60 else "val" if i < 80 else "test"
            array = np.random.default_rng(i).normal(300 * level - 300, 60, (5, 9, 9)).astype(np.int16)
            labels = {"bright": None if i % 11 == 0 else int(level == 2), "rare": int(i % 30 == 4)}
            labels |= {name: int(level == number) for number, name in enumerate(("low", "middle", "high"))}
            scans = (Scan(array=array, spacing_mm=(3.0, 2.0, 2.0)),)
            writer.write(Study(f"{i:016x}", f"{1000 + i // 2:016x}", split, scans, Texts(report="A scan."), labels))
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "task.yaml").write_text(TASK)
    models = [release(folder / f"model{seed}", seed) for seed in (0, 1)]
    return {"folder": folder, "models": models, "data": shards(folder / "shards")}


def run(world: dict[str, Any], out: Path, *words: str, model: int = 0, cache: str = "cache") -> Outcome:
    arguments = ["--model", world["models"][model], "--data", world["data"], "--device", "cpu", "--resamples", "50"]
    assert main([*arguments, "--cache", str(world["folder"] / cache), "--out", str(out), *words]) == 0
    (outcome,) = read_results(out)
    return outcome


def test_labels_with_everything(world: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    few = ["--shots", "1", "4", "--fractions", "0.1", "--draws-count", "3", "--knn", "5"]
    found = run(world, tmp_path, "--labels", "bright,rare", *few)
    said = capsys.readouterr().out
    assert found.protocol == "probe" and found.headline == "auroc" and found.classes == ("bright", "rare")
    bright = found.metric("auroc", "bright")
    assert bright is not None and bright.value is not None and bright.value > 0.9  # any random encoder sees brightness
    assert bright.low is not None and bright.low < bright.value
    assert found.metric("train_studies").value == 80
    for at in ({"knn": 5}, {"fraction": 0.1}, {"shots": 1}):
        for name in ("auroc", "auprc", "balanced_accuracy"):
            assert found.metric(name, "", **at) is not None
    four = found.metric("auroc", "bright", shots=4)
    assert four is not None and four.low <= four.value <= four.high
    assert four.method == "range of 3 draws"
    rare = found.metric("auroc", "rare", shots=4)
    assert (
        rare is not None
        and rare.value is None
        and rare.reason == ("4 shots need 4 patients with rare=1; training has 2")
    )
    assert "4 shots need 4 patients with rare=1" in said and "unit-length" in said
    realised = found.metric("train_studies", fraction=0.1)
    assert realised is not None and 4 <= realised.low <= realised.high <= 12
    assert found.scores is not None
    variants = set(found.scores["variant"])
    assert {"", "knn=5", "fraction=0.1,draw=2", "shots=4,draw=0"} <= variants
    assert len(found.scores[found.scores["variant"] == ""]) == 80
    assert len(found.scores[found.scores["variant"] == "shots=4,draw=0"]) == 40  # `rare` has no such draw


def test_classes(world: dict[str, Any], tmp_path: Path) -> None:
    found = run(world, tmp_path, "--labels", "level=low|middle|high", "--shots", "2", "16", "--draws-count", "2")
    assert found.task == "level" and found.headline == "balanced_accuracy"
    assert found.main.value is not None and found.main.value > 0.6
    for name in ("acc1", "auroc", "auprc"):
        assert found.metric(name) is not None and found.metric(name, "", shots=2) is not None
    assert found.metric("recall", "middle") is not None
    best = found.scores[found.scores["variant"] == ""].pivot(index="key", columns="of", values="score")
    assert np.exp(best.to_numpy()).sum(1) == pytest.approx(1)


def test_two_models_and_any_cache_learn_from_the_same_studies(world: dict[str, Any], tmp_path: Path) -> None:
    few = ["--labels", "bright,rare", "--shots", "1", "2", "--fractions", "0.2", "--draws-count", "3"]
    made = tmp_path / "draws.json"
    words = ["--data", world["data"], *few, "--out", str(made)]
    assert draw(words) == 0
    first = run(world, tmp_path / "a", "--draws", str(made), "--labels", "bright,rare")
    cached = run(world, tmp_path / "b", *few)
    other = run(world, tmp_path / "c", *few, model=1, cache="empty")
    assert first.provenance["draws_sha256"] == cached.provenance["draws_sha256"] == other.provenance["draws_sha256"]
    assert first.metrics == cached.metrics
    assert not np.array_equal(first.scores["score"], other.scores["score"])  # it is another model


def test_probes_that_searched_otherwise_are_not_compared(world: dict[str, Any], tmp_path: Path) -> None:
    from eval_zero_shot.paired import require_comparable

    one = run(world, tmp_path / "a", "--labels", "bright")
    for number, (words, said) in enumerate(
        ((["--finer"], "finer"), (["--validation-split", "none"], "validation_rows_sha256"))
    ):
        other = run(world, tmp_path / str(number), "--labels", "bright", *words, model=1)
        with pytest.raises(EvalError, match=f"the two results differ in {said}"):
            require_comparable(one, other)


def test_features_of_the_trunk(world: dict[str, Any], tmp_path: Path) -> None:
    """Of another space than the projected ones in the same cache, told, and not compared with them."""
    from eval_zero_shot.paired import require_comparable

    words = ["--labels", "bright", "--fractions", "0.2", "--draws-count", "2"]
    projected, trunk = (run(world, tmp_path / kind, *words, "--features", kind) for kind in ("projected", "trunk"))
    assert trunk.provenance["features"] == "trunk" and trunk.notes[0].startswith(
        "Features: image features of the trunk"
    )
    assert trunk.main.value is not None and trunk.main.value > 0.9
    one, other = (found.scores[found.scores["variant"] == ""] for found in (projected, trunk))
    assert len(one) == 40 and one["key"].tolist() == other["key"].tolist()
    assert not np.array_equal(one["score"], other["score"])
    with pytest.raises(EvalError, match="the two results differ in features"):
        require_comparable(projected, trunk)
    arguments = ["--model", world["models"][0], "--data", world["data"], "--features", "trunk", "--no-cache"]
    assert main([*arguments, "--task", str(world["folder"] / "task.yaml")]) == 1


def test_a_text_start(world: dict[str, Any], tmp_path: Path) -> None:
    task = str(world["folder"] / "task.yaml")
    found = run(world, tmp_path, "--task", task, "--shots", "1", "--draws-count", "2", "--shot-strength", "validation")
    assert found.task == "brightness" and found.classes == ("bright",)
    for at in ({"start": "text"}, {"shots": 1}, {"shots": 1, "start": "text"}):
        metric = found.metric("auroc", "", **at)
        assert metric is not None and metric.value is not None
    assert any("min(k, 4) shots of the validation split" in note for note in found.notes)
    arguments = ["--model", world["models"][0], "--data", world["data"], "--task", task, "--labels", "rare"]
    assert main([*arguments, "--cache", str(world["folder"] / "cache")]) == 1


def test_what_is_refused(world: dict[str, Any], capsys: Any) -> None:
    arguments = ["--model", world["models"][0], "--device", "cpu", "--cache", str(world["folder"] / "cache")]
    for words, said in (
        (["--data", world["data"], "--labels", "brght"], "no label brght"),
        (["--data", world["data"], "--split", "tset"], "no study in split 'tset'"),
        (["--data", world["data"], "--split", "train"], "learnt from and scored"),
        (["--data", world["data"], "--labels", "x=bright|high"], "have more than one class"),
        (["--data", world["data"], "--draws", "d.json", "--shots", "1"], "--draws with --shots"),
    ):
        assert main([*arguments, *words]) == 1
        assert said in capsys.readouterr().err


def test_patients_in_training_and_test_are_refused(world: dict[str, Any]) -> None:
    parser = argparse.ArgumentParser()
    add_inputs(parser)
    words = ["--model", world["models"][0], "--data", world["data"], "--device", "cpu", "--no-cache"]
    inputs = open_inputs(parser.parse_args(words), texts=False)
    rows = Rows(np.array([0, 2, 4]), None, np.array([1, 3, 50]))
    with pytest.raises(EvalError, match="2 patients are in train and in test"):
        score_probe(inputs, rows, Question("labels", ("bright",)))
