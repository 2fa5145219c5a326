"""Scores of a released head of labels, as a user asks for them, against scikit-learn study by study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import encoders
from data_shards.preprocess import crops_of
from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from encoders.dual import build_dual
from encoders.heads import describe_head
from encoders.heads.attended import AttendedPooling
from encoders.heads.labels import LabelHead
from encoders.heads.linear import LinearHead
from encoders.release import write_release
from eval_zero_shot.compare import compare
from eval_zero_shot.heads import main, print_head
from eval_zero_shot.outcome import Metric, Outcome, read_results
from eval_zero_shot.resample import patient_weights

from .conftest import GEOMETRY, VIEW

LABELS = ("nowhere", "dark", "bright", "rare", "gone")


def release(folder: Path, seed: int = 0) -> Path:
    """With a head of names, one of none, and one of another kind; the latter two of the first are equal."""
    torch.manual_seed(seed)
    vision = {"timm_model_name": "voxvit_tiny.p-2x4x4_i-4x8x8_c-1_l-1", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**vision, "image_size": 8}, "text_cfg": text}
    dual = build_dual(config)
    width = dual.clip.visual.trunk.num_features
    labels, linear = LabelHead(width, LABELS), LinearHead(width, len(LABELS))
    linear.layer.load_state_dict(labels.state_dict())
    heads = {"labels": labels, "phenotypes": linear, "attended": AttendedPooling(width, 8, heads=2)}
    return write_release(
        folder, dual.clip.state_dict(), config, GEOMETRY, VIEW,
        heads={name: describe_head(head) for name, head in heads.items()},
        head_weights={f"{name}.{k}": v for name, head in heads.items() for k, v in head.state_dict().items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """70 test studies, two a patient: `bright` is seen and often unknown, `rare` is present in three."""
    folder = tmp_path_factory.mktemp("heads")
    with ShardWriter(folder / "shards") as writer:
        for i in range(72):
            rng, bright = np.random.default_rng(i), i % 3 == 0
            array = rng.normal(200 if bright else -200, 500, (5, 9, 9)).astype(np.int16)
            labels = {"bright": None if i % 5 == 0 else int(bright), "dark": i // 2 % 2, "rare": int(i in (3, 20, 41))}
            scans = (Scan(array=array, spacing_mm=(3.0, 2.0, 2.0)),)
            split = "test" if i < 70 else "val"
            writer.write(Study(f"{i:016x}", f"{1000 + i // 2:016x}", split, scans, Texts(report="A scan."), labels))
    (folder / "names.txt").write_text("\n".join(LABELS))
    return {"model": release(folder / "model"), "data": folder / "shards", "names": folder / "names.txt"}


def run(world: dict[str, Path], out: Path, *words: str, resamples: int = 40) -> Outcome:
    arguments = ["--model", str(world["model"]), "--data", str(world["data"]), "--device", "cpu", "--no-cache"]
    assert main([*arguments, "--resamples", str(resamples), "--out", str(out), *words]) == 0
    (outcome,) = read_results(out)
    return outcome


def asked_one_by_one(world: dict[str, Path]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Logits and labels of the test studies by label, and their patients."""
    shards, loaded = ShardSet.open(world["data"]), encoders.load(world["model"])
    rows = [int(row) for row in shards.rows("test")]
    head: Any = loaded.heads["labels"]
    with torch.no_grad():
        logits = [
            head(loaded.model.encode_image(torch.from_numpy(crops_of(*shards.scan(row, 0), GEOMETRY, VIEW)), trunk=True)
                 .trunk_SC)[0].numpy()
            for row in rows
        ]  # fmt: skip
    truth = {name: shards.labels((name,))[rows, 0] for name in ("bright", "dark", "rare")}
    scores = {name: np.array([one[LABELS.index(name)] for one in logits]) for name in truth}
    return scores, truth, [shards.patient(row) for row in rows]


def test_against_scikit_learn(world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(world, tmp_path, "--min-positives", "15")
    scores, truth, patients = asked_one_by_one(world)
    assert found.classes == ("dark", "bright") and found.studies == 70 and found.patients == 35
    reference = {"auroc": roc_auc_score, "auprc": average_precision_score}
    for name, measure in reference.items():
        each = []
        for label in found.classes:
            known = ~np.isnan(truth[label])
            each.append(measure(truth[label][known], scores[label][known]))
            metric = found.metric(name, label)
            assert metric is not None and metric.value == pytest.approx(each[-1], abs=1e-6)
            assert metric.n == known.sum() and metric.low < metric.value < metric.high
        drawn = []
        for weights_RN in patient_weights(patients, 40, 0):
            for weights in weights_RN.astype(int):
                counted = {of: np.where(np.isnan(truth[of]), 0, weights) for of in found.classes}
                again = {of: np.repeat(np.arange(70), counted[of]) for of in found.classes}
                drawn.append(np.mean([measure(truth[of][again[of]], scores[of][again[of]]) for of in found.classes]))
        macro = found.metric(name)
        assert macro is not None and macro.value == pytest.approx(np.mean(each), abs=1e-6)
        assert (macro.low, macro.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=1e-6)
    rare = found.metric("auroc", "rare")
    assert rare is not None and rare.value is None
    assert rare.reason == "present in 3 and absent in 67, and 15 of each are asked for"
    assert found.metric("positives", "rare").value == 3 and found.metric("auroc", "nowhere") is None
    said = " ".join(capsys.readouterr().out.split())
    assert "Means are over 2 of 5 labels" in said and "2 are no labels of these shards: nowhere, gone." in said
    assert "1 are present or absent in fewer than 15 studies: rare." in said
    assert "Unknown labels are left out: 14 of 140." in said
    assert set(found.scores["of"]) == {"dark", "bright"} and len(found.scores) == 140
    assert "label_head" in (tmp_path / "results.csv").read_text()


def test_which_labels_count(world: dict[str, Path], tmp_path: Path) -> None:
    scores, truth, _ = asked_one_by_one(world)
    every = run(world, tmp_path / "every", "--min-positives", "3", resamples=0)
    assert every.classes == ("dark", "bright", "rare")
    assert every.metric("auroc", "rare").value == pytest.approx(roc_auc_score(truth["rare"], scores["rare"]), abs=1e-6)
    bright = int((truth["bright"] == 1).sum())  # the smaller of its classes, unknown studies aside
    assert run(world, tmp_path / "at", "--min-positives", str(bright), resamples=0).classes == ("dark", "bright")
    assert run(world, tmp_path / "above", "--min-positives", str(bright + 1), resamples=0).classes == ("dark",)


def test_a_head_without_names(world: dict[str, Path], tmp_path: Path) -> None:
    words = ["--min-positives", "15", "--scans", "mean"]
    named = run(world, tmp_path / "a", *words, resamples=0)
    file = run(world, tmp_path / "b", *words, "--head", "phenotypes", "--names", str(world["names"]), resamples=0)
    assert file.task == "phenotypes" and file.metrics == named.metrics


def test_results_are_compared(world: dict[str, Path], tmp_path: Path) -> None:
    ours = run(world, tmp_path / "a", "--min-positives", "15")
    other = run({**world, "model": release(tmp_path / "other", seed=1)}, tmp_path / "b", "--min-positives", "15")
    (difference,) = compare([other], [ours], resamples=40)
    assert difference.difference.value == pytest.approx(other.main.value - ours.main.value, abs=1e-9)
    fewer = run(world, tmp_path / "c", "--min-positives", "3")
    told: list[str] = []
    assert compare([fewer], [ours], resamples=40, tell=told.append) == [] and "differ in task_sha256" in told[0]


def test_what_is_refused(world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.txt"
    short.write_text("dark\nbright\n")
    strange = tmp_path / "strange.txt"
    strange.write_text("\n".join(f"code {i}" for i in range(5)))
    for words, said in (
        (["--head", "phenotype"], "without a head of labels 'phenotype'"),
        (["--head", "attended"], "--head labels or phenotypes"),
        (["--names", str(short)], "--names, and head 'labels' has them"),
        (["--head", "phenotypes"], "head 'phenotypes' has 5 outputs without names, and --names says 0"),
        (["--head", "phenotypes", "--names", str(short)], "and --names says 2"),
        (
            ["--head", "phenotypes", "--names", str(strange)],
            "none of the 5 labels of head 'phenotypes' (code 0, code 1",
        ),
        (["--min-positives", "60"], "present in 60 studies of split 'test' and absent in as many"),
        (["--min-positives", "0"], "--min-positives 0"),
        (["--names", "gone.txt"], "'gone.txt' cannot be read"),
    ):
        arguments = ["--model", str(world["model"]), "--data", str(world["data"]), "--no-cache", "--device", "cpu"]
        assert main([*arguments, *words]) == 1
        assert said in capsys.readouterr().err


def test_of_many_labels_the_table_shows_the_highest_and_the_lowest(capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(f"code-{i:02d}" for i in range(41))
    each = [Metric("auroc", 0.5 + i / 100, of=name) for i, name in enumerate(names)]
    print_head(Outcome("head", "labels", "toy", "", "auroc", (*each, Metric("auroc", 0.7)), 9, 9, 9, classes=names))
    shown = capsys.readouterr().out
    assert "... 21 more" in shown and [f"code-{i:02d}" in shown for i in (40, 31, 30, 10, 9, 0)] == [
        True, True, False, False, True, True
    ]  # fmt: skip
    assert shown.index("code-40") < shown.index("... 21 more") < shown.index("code-00")
