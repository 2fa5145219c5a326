"""The commands of a first hour, as a user gives them: embed a folder or shards, score one scan, and ask again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import encoders
from data_shards.geometry import PlanarGeometry
from data_shards.phantom.pacs import write_pacs
from data_shards.shard_set import ShardSet
from eval_zero_shot import embed, embedding, feature_cache, run, score
from eval_zero_shot.errors import EvalError
from eval_zero_shot.feature_cache import FeatureCache, identity_of
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.scans import find_scans, with_view

from .conftest import GEOMETRY, TASK, VIEW
from .toy_release import write_toy_release

ISOTROPIC = GEOMETRY.__class__(spacing_mm=(4.0, 2.0, 2.0), windows=((-1000.0, 1000.0),))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained dual encoder that wants its volumes resampled, released."""
    return write_toy_release(tmp_path_factory.mktemp("release") / "toy", geometry=ISOTROPIC)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    file = tmp_path / "toy.yaml"
    file.write_text(json.dumps(TASK.model_dump(mode="json")))
    return file


@pytest.fixture
def folder(tmp_path: Path, series: Any) -> Path:
    """Two NIfTI files, one in a folder of its own, a DICOM series, and a note that is no scan."""
    root = tmp_path / "Jane_Doe"
    (root / "deep").mkdir(parents=True)
    for i, name in enumerate(("b.nii.gz", "deep/a.nii")):
        nibabel.save(nibabel.Nifti1Image(volume(i), np.diag([2.0, 2.0, 3.0, 1.0])), root / name)
    series(root / "ct", volume(2).transpose(2, 1, 0))
    (root / "notes.txt").write_text("nothing")
    return root


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 300, (12, 10, 9)).astype(np.int16)


def test_a_folder_becomes_a_table(release: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "features.parquet"
    arguments = ["--model", str(release), "--input", str(folder), "--out", str(out), "--device", "cpu"]
    assert embed.main(arguments) == 0
    assert "3 studies, 8 numbers each" in capsys.readouterr().out
    table = pq.read_table(out)
    assert table.column("file").to_pylist() == ["b.nii.gz", "ct", "deep/a.nii"]
    assert len(set(table.column("key").to_pylist())) == 3
    features = np.stack(table.column("features").to_pylist())
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    loaded = encoders.load(str(release))
    assert table.schema.metadata[b"voxclip.release"].decode() == loaded.sha256
    with torch.no_grad():
        alone = loaded.model.encode_image(loaded.preprocess(folder / "ct")[None]).study_BD
    np.testing.assert_allclose(features[1], torch.nn.functional.normalize(alone, dim=1)[0], rtol=1e-4, atol=1e-6)

    for view in ("sliding", "multi"):
        assert embed.main([*arguments, "--view", view, "--overlap", "0.5"]) == 0
        merged = np.stack(pq.read_table(out).column("features").to_pylist())
        crops = with_view(loaded, view, 0.5).preprocess.crops(folder / "b.nii.gz")
        with torch.no_grad():
            each = torch.nn.functional.normalize(loaded.model.encode_image(crops).study_BD.double(), dim=1)
        mean = torch.nn.functional.normalize(each.mean(0), dim=0)
        assert len(crops) > 1 and not np.allclose(merged[0], features[0])
        np.testing.assert_allclose(merged[0], mean, rtol=1e-4, atol=1e-6)


def test_shards_become_a_table(release: Path, toy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "features.parquet"
    arguments = ["--model", str(release), "--input", str(toy_folder), "--out", str(out), "--split", "test"]
    assert embed.main([*arguments, "--device", "cpu"]) == 0
    table, shards = pq.read_table(out), ShardSet.open(toy_folder)
    single = np.stack(table.column("features").to_pylist())
    assert table.column("key").to_pylist() == [shards.key(int(row)) for row in shards.rows("test")]
    assert table.column("patient").to_pylist() == [shards.patient(int(row)) for row in shards.rows("test")]
    assert embed.main([*arguments, "--device", "cpu", "--view", "multi"]) == 0
    again = pq.read_table(out)
    assert again.column("key").to_pylist() == table.column("key").to_pylist()
    assert not np.allclose(np.stack(again.column("features").to_pylist()), single)


def test_an_unreadable_scan_is_refused_without_its_name(
    release: Path, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    (folder / "b.nii.gz").write_bytes(b"no scan")
    out = tmp_path / "features.parquet"
    arguments = ["--model", str(release), "--input", str(folder), "--out", str(out), "--device", "cpu"]
    assert embed.main(arguments) == 1
    said = capsys.readouterr().err
    assert "scan 1 of 3" in said
    assert "Jane" not in said and "b.nii" not in said
    assert said.count("why:") == said.count("fix:") == 1
    assert not out.exists() and not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize("wrong", ["nowhere", "empty"])
def test_nothing_to_read_is_said(release: Path, tmp_path: Path, capsys: Any, wrong: str) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["--model", str(release), "--input", str(tmp_path / wrong), "--out", str(tmp_path / "f.parquet")]
    assert embed.main([*arguments, "--device", "cpu"]) == 1
    assert ("does not exist" if wrong == "nowhere" else "holds no volumes") in capsys.readouterr().err


def test_one_scan_is_scored(release: Path, folder: Path, task: Path, capsys: Any) -> None:
    arguments = ["--model", str(release), "--prompts", str(task), "--device", "cpu", str(folder / "b.nii.gz")]
    assert score.main([*arguments, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["windows"] == 1
    loaded = encoders.load(str(release))
    scale = loaded.model.logit_scale.exp().item()
    for found in whole["findings"]:
        logits = torch.tensor([found["positive"], found["negative"]], dtype=torch.float64) * scale
        assert found["probability"] == pytest.approx(float(logits.softmax(0)[0]), rel=1e-6)
    assert [f["finding"] for f in whole["findings"]] == list(TASK.names)
    assert score.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "probability" in shown and "bright" in shown


def test_crops_are_merged_as_asked(release: Path, folder: Path, task: Path, capsys: Any) -> None:
    loaded = encoders.load(str(release))
    crops = with_view(loaded, "sliding").preprocess.crops(folder / "b.nii.gz").numpy()
    assert len(crops) > 1
    each = [score.score_views(loaded, crop[None], TASK) for crop in crops]
    for merge in ("mean", "max"):
        arguments = ["--model", str(release), "--prompts", str(task), "--device", "cpu", "--view", "sliding"]
        assert score.main([*arguments, "--merge", merge, "--json", str(folder / "b.nii.gz")]) == 0
        whole = json.loads(capsys.readouterr().out)
        assert whole["windows"] == len(crops)
        for j, found in enumerate(whole["findings"]):
            differences = [one[j].positive - one[j].negative for one in each]
            expected = max(differences) if merge == "max" else sum(differences) / len(differences)
            assert found["positive"] - found["negative"] == pytest.approx(expected, abs=1e-6)


def test_array_nifti_dicom_and_stream_give_the_same_input(release: Path, series: Any, tmp_path: Path) -> None:
    """What a user loads by hand is bit for bit what training and evaluation stream."""
    from data_shards.schema import Study, Texts
    from data_shards.shard_set import ShardWriter
    from data_shards.stream import UnitPolicy, ordered_pass
    from data_shards.volume import read_volume

    stored = np.random.default_rng(3).normal(0, 300, (9, 10, 12)).astype(np.int16)
    dicom = series(tmp_path / "ct", stored)
    scan = read_volume(dicom)
    affine = np.diag([*reversed([float(s) for s in scan.spacing_mm]), 1.0])
    nibabel.save(nibabel.Nifti1Image(scan.array.transpose(2, 1, 0), affine), tmp_path / "ct.nii.gz")
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write(Study(key="0" * 16, patient="1" * 16, split="test", scans=(scan,), texts=Texts(report="A scan.")))
    shards = ShardSet.open(tmp_path / "shards")
    loaded = encoders.load(str(release))
    (batch,) = ordered_pass(
        shards, shards.rows("test"), loaded.geometry, loaded.view, loaded.tokenizer, UnitPolicy(), batch_size=1
    )
    streamed = batch.images_BCDHW[0]
    assert torch.equal(loaded.preprocess(scan.array, spacing_mm=scan.spacing_mm), streamed)
    assert torch.equal(loaded.preprocess(dicom), streamed)
    assert torch.equal(loaded.preprocess(tmp_path / "ct.nii.gz"), streamed)


def test_features_are_kept_until_anything_changes(
    release: Path, toy_folder: Path, task: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, runs = tmp_path / "cache", itertools.count()

    def scores(*more: str) -> bytes:
        out = tmp_path / f"out{next(runs)}"  # in one folder the second run would keep what the first has scored
        words = ["--model", str(release), "--data", str(toy_folder), "--task", str(task), "--resamples", "0"]
        assert run.main([*words, "--pool", "8", "--device", "cpu", "--no-cases", "--out", str(out), *more]) == 0
        return (out / "scores.parquet").read_bytes()

    fresh = scores("--no-cache")
    assert not cache.exists()
    assert scores("--cache", str(cache)) == fresh
    stamps = {f: f.stat().st_mtime_ns for f in cache.iterdir()}
    assert len(stamps) == 2, "the scored studies, and those that thresholds are fitted on"
    assert scores("--cache", str(cache)) == fresh
    assert {f: f.stat().st_mtime_ns for f in cache.iterdir()} == stamps
    for kept in stamps:
        kept.write_bytes(kept.read_bytes()[:-40])  # a damaged file is made again
    assert scores("--cache", str(cache)) == fresh
    scores("--cache", str(cache), "--max-studies", "5")
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(feature_cache, "code_sha256", lambda: "other code")
    scores("--cache", str(cache))
    assert len(list(cache.iterdir())) == 5


def test_identities_differ_in_everything_that_matters(release: Path, toy_shards: ShardSet, tmp_path: Path) -> None:
    loaded = encoders.load(str(release))
    base: dict[str, Any] = {"loaded": loaded, "shards": toy_shards, "rows": [0, 1], "precision": "fp32"}
    other_view = VIEW.__class__("centre", (4, 8, 4))
    changed = [{"sha256": "x"}, {"geometry": GEOMETRY}, {"view": other_view}]
    changes = [{"loaded": dataclasses.replace(loaded, **one)} for one in changed]
    changes += [{"rows": [1, 0]}, {"precision": "bf16"}, {"features": "trunk"}]
    cache = FeatureCache(tmp_path)
    paths = [cache.path(identity_of(**base)), *(cache.path(identity_of(**base | change)) for change in changes)]
    assert len(set(paths)) == len(changes) + 1
    assert cache.get(identity_of(**base)) is None


def test_what_auto_means_goes_by_the_device_the_model_is_on(
    release: Path, toy_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU beside a model on the CPU changes nothing: "auto" is fp32 there, and one file serves both."""
    inputs = Inputs("toy", encoders.load(str(release), device="cpu"), toy_shards, None, precision="auto")
    plain = identity_of(inputs.loaded, toy_shards, [0], "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert identity_of(inputs.loaded, toy_shards, [0], "auto") == plain
    assert inputs.provenance([0], "test")["precision"] == "fp32"
    monkeypatch.setattr(embedding, "_device", lambda model: torch.device("cuda"))
    assert identity_of(inputs.loaded, toy_shards, [0], "auto")["precision"] == "bf16 cuda"
    assert inputs.arithmetic == "bf16"


def test_scans_are_found_by_what_they_are(folder: Path) -> None:
    shutil.copy(folder / "notes.txt", folder / "picture.txt")
    scans, left_out = find_scans(folder, planar=False)
    assert [str(f.relative_to(folder)) for f in scans] == ["b.nii.gz", "ct", "deep/a.nii"] and left_out == 0
    assert find_scans(folder / "b.nii.gz", planar=False) == ([folder / "b.nii.gz"], 0)


def test_localizers_are_no_scans(tmp_path: Path) -> None:
    scans, left_out = find_scans(write_pacs(tmp_path / "pacs", 2), planar=False)
    assert [f.name for f in scans] == ["body", "body"] and left_out == 2


def test_several_scans_are_scored_in_their_order(release: Path, folder: Path, task: Path, capsys: Any) -> None:
    common = ["--model", str(release), "--prompts", str(task), "--device", "cpu"]
    each = []
    for scan in (folder / "b.nii.gz", folder / "deep" / "a.nii"):
        assert score.main([*common, "--json", str(scan)]) == 0
        each.append(json.loads(capsys.readouterr().out))
    assert score.main([*common, "--json", str(folder / "b.nii.gz"), str(folder / "deep" / "a.nii")]) == 0
    assert json.loads(capsys.readouterr().out) == each
    assert score.main([*common, str(folder / "b.nii.gz"), str(folder / "deep" / "a.nii")]) == 0
    assert capsys.readouterr().out.count("Zero-shot findings") == 2


def test_a_missing_scan_is_told_by_its_number(release: Path, folder: Path, task: Path, capsys: Any) -> None:
    common = ["--model", str(release), "--prompts", str(task), "--device", "cpu"]
    assert score.main([*common, str(folder / "b.nii.gz"), str(folder / "Jane.nii")]) == 1
    said = capsys.readouterr().err
    assert "scan 2 of 2 does not exist" in said and "Jane" not in said


def test_batches_of_a_folder_change_nothing(release: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    found = []
    for size, view in (("1", "own"), ("3", "own"), ("1", "sliding"), ("5", "sliding")):
        out = tmp_path / f"{size}{view}.parquet"
        arguments = ["--model", str(release), "--input", str(folder), "--out", str(out), "--device", "cpu"]
        assert embed.main([*arguments, "--batch-size", size, "--view", view]) == 0
        found.append(np.stack(pq.read_table(out).column("features").to_pylist()))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[2], found[3], atol=1e-6)
    assert embed.main([*arguments, "--batch-size", "0"]) == 1
    assert "--batch-size 0" in capsys.readouterr().err


def test_a_file_name_that_is_no_text_is_refused_before_encoding(
    release: Path, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copy(folder / "b.nii.gz", os.fsencode(folder) + b"/\xff.nii.gz")
    out = tmp_path / "features.parquet"
    arguments = ["--model", str(release), "--input", str(folder), "--out", str(out), "--device", "cpu"]
    assert embed.main(arguments) == 1
    assert "scan 4 of 4" in capsys.readouterr().err and not out.exists()


def test_crops_of_a_resized_view_or_an_image_are_refused(release: Path) -> None:
    loaded = encoders.load(str(release))
    resized = dataclasses.replace(loaded, view=VIEW.__class__("resize", (4, 8, 8)))
    with pytest.raises(EvalError, match="resized to one size"):
        with_view(resized, "sliding")
    planar = dataclasses.replace(loaded, geometry=PlanarGeometry(size=(8, 8)), view=VIEW.__class__())
    with pytest.raises(EvalError, match="reads images"):
        with_view(planar, "sliding")
    assert with_view(planar, "multi").view.kind == "multi"


def test_a_cache_that_cannot_be_written_loses_nothing(
    release: Path, toy_folder: Path, task: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").write_text("not a folder")
    arguments = ["--model", str(release), "--data", str(toy_folder), "--task", str(task), "--resamples", "0", "--pool"]
    arguments += ["--device", "cpu", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "file" / "cache")]
    assert run.main(arguments) == 0
    assert "features could not be kept" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").is_file()


def test_tasks_of_one_name_are_refused(
    release: Path, toy_folder: Path, task: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copy(task, tmp_path / "again.yaml")
    arguments = ["--model", str(release), "--data", str(toy_folder), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert run.main([*arguments, "--task", str(task), str(tmp_path / "again.yaml")]) == 1
    assert "two entries give classification of toy" in capsys.readouterr().err and not (tmp_path / "out").exists()
