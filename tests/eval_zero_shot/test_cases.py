"""Studies of several scans: scored by their first, by the mean of all, or scan by scan, from the command line."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

import encoders
from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from eval_zero_shot import classify, compare, embed, retrieve
from eval_zero_shot.cases import Scans
from eval_zero_shot.errors import EvalError
from eval_zero_shot.feature_cache import FeatureCache
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.outcome import read_results
from eval_zero_shot.probe import __main__ as probe
from eval_zero_shot.probe import draws
from eval_zero_shot.retrieval.protocol import score_retrieval
from eval_zero_shot.statistics import Run, finding_interval

from .several_scans import (
    CHOICES,
    SCANS,
    TESTED,
    TRAIN,
    VAL,
    classified,
    embedded,
    given,
    key,
    scans_of,
    world,
)

assert world  # a fixture of this module as well


@pytest.mark.parametrize("view", ["own", "sliding"])  # sliding: scans of one study have other numbers of crops
def test_the_mean_is_of_every_scan_and_the_first_is_one_of_them(
    world: Path, tmp_path: Path, capsys: Any, view: str
) -> None:
    found = {scans: embedded(world, tmp_path / f"{scans}.parquet", scans, view) for scans in CHOICES}
    assert found["every"][0] == SCANS
    assert found["first"][0] == found["mean"][0] == [key(i) for i in TESTED]
    each = {name: vector.astype(float) for name, vector in zip(*found["every"][:2], strict=True)}
    for name, first, mean in zip(*found["first"][:2], found["mean"][1], strict=True):
        own = np.stack([vector for scan, vector in each.items() if scan.partition(".")[0] == name])
        whole = own.mean(axis=0)
        np.testing.assert_allclose(first, own[0], atol=1e-6)
        np.testing.assert_allclose(mean, whole / np.linalg.norm(whole), atol=1e-6)
        assert len(own) == 1 or not np.allclose(mean, first, atol=1e-4), "other pictures have other vectors"
    table = found["every"][2]
    assert table["patient"].to_pylist() == [f"{1000 + int(scan[:16], 16) // 2:016x}" for scan in SCANS]
    assert table.schema.metadata[b"voxclip.scan_choice"] == b"every"
    assert f"{len(SCANS)} scans" in capsys.readouterr().out
    words = ["--model", str(world / "ours"), "--input", str(tmp_path), "--out", str(tmp_path / "x.parquet")]
    assert embed.main([*words, "--device", "cpu", "--scans", "every"]) == 1
    assert "--scans is for shard sets" in capsys.readouterr().err


def test_counts_keys_labels_and_notes_say_what_was_scored(world: Path, tmp_path: Path, repo: Path, capsys: Any) -> None:
    found = {s: classified(world, tmp_path / s, "--scans", s, "--threshold-split", "val") for s in CHOICES}
    told = capsys.readouterr().out
    n, schema = len(SCANS), json.loads((repo / "eval_zero_shot" / "results.schema.json").read_text())
    for scans, cases, read in (("first", 24, 24), ("mean", 24, n), ("every", n, n)):
        outcome = found[scans]
        jsonschema.validate(json.loads((tmp_path / scans / "results.json").read_text()), schema)
        assert (outcome.studies, outcome.scans, outcome.patients) == (24, read, 12)
        assert outcome.metric("auroc", "bright").n == cases  # type: ignore[union-attr]
        assert outcome.provenance["scan_choice"] == scans
    assert classified(world, tmp_path / "default").scores.equals(found["first"].scores)  # type: ignore[union-attr]
    assert len({o.provenance["data_sha256"] for o in found.values()}) == 1, "they are of one shard set"
    assert f"{n} scans of 24 studies of 12 patients" in told and "\n24 studies of 12 patients" in told
    assert not any("A case is" in note for note in found["first"].notes)
    assert any("A case is a study: the mean of the unit vectors" in note for note in found["mean"].notes)
    assert any(f"A case is a scan: {n} scans of 24 studies" in note for note in found["every"].notes)
    scores = found["every"].scores
    assert scores is not None
    bright = scores[(scores["variant"] == "") & (scores["of"] == "bright")]
    assert bright["key"].tolist() == SCANS
    assert bright["label"].tolist() == [int(scan[:16], 16) // 2 % 2 for scan in SCANS]
    firsts = bright[bright["key"].str.endswith(".00")]["score"].to_numpy()
    main = found["first"].scores
    assert main is not None
    alone = main[(main["variant"] == "") & (main["of"] == "bright")]["score"].to_numpy()
    np.testing.assert_allclose(firsts, alone, atol=1e-6)


def test_intervals_draw_patients_with_all_their_scans(world: Path, tmp_path: Path) -> None:
    outcome = classified(world, tmp_path, "--scans", "every")
    metric, scores = outcome.metric("auroc", "bright"), outcome.scores
    assert metric is not None and scores is not None
    part = scores[(scores["variant"] == "") & (scores["of"] == "bright")]
    by = {
        name: finding_interval(Run.of(part["score"], part["label"], clusters), 0)
        for name, clusters in (("patient", part["patient"]), ("study", part["key"].str[:16]), ("scan", part["key"]))
    }
    assert (metric.low, metric.high) == pytest.approx((by["patient"].low, by["patient"].high))
    assert by["patient"].low != pytest.approx(by["scan"].low) and by["patient"].low != pytest.approx(by["study"].low)


def test_a_choice_of_studies_is_the_same_whatever_a_case_is(world: Path, tmp_path: Path) -> None:
    few = [classified(world, tmp_path / s, "--scans", s, "--max-studies", "6") for s in CHOICES]
    asked = [{name[:16] for name in o.scores["key"]} for o in few]  # type: ignore[index]
    assert asked[0] == asked[1] == asked[2] and len(asked[0]) == 6
    wanted = sum(scans_of(int(name, 16)) for name in asked[0])
    assert [(o.studies, o.scans) for o in few] == [(6, 6), (6, wanted), (6, wanted)]


def test_features_of_one_choice_are_never_taken_for_those_of_another(world: Path, tmp_path: Path) -> None:
    """Row 1 is the second study, and of every scan the first of the second study; of rows 0, 1, 2 all three differ."""
    shards, loaded = ShardSet.open(world / "shards"), encoders.load(str(world / "ours"))
    cache = FeatureCache(tmp_path / "cache")

    def keys(scans: Scans, rows: list[int]) -> tuple[str, ...]:
        return Inputs("toy", loaded, shards, cache, scans=scans).features(rows).keys

    for _ in range(2):  # encoded, then kept
        assert keys("first", [0, 1, 2]) == keys("mean", [0, 1, 2]) == (key(0), key(1), key(2))
        assert keys("every", [0, 1, 2]) == (f"{key(0)}.00", f"{key(1)}.00", f"{key(1)}.01")
    before = len(list(cache.folder.iterdir()))
    assert keys("every", list(range(6))) and len(list(cache.folder.iterdir())) == before, "the mean is of these"
    with_cache, without = (classified(world, tmp_path / str(c), "--scans", "mean", cache=c) for c in (True, False))
    assert with_cache.metrics == without.metrics


@pytest.mark.parametrize("scans", CHOICES)
def test_inputs_may_be_replaced_in_part_whatever_a_case_is(world: Path, scans: Scans) -> None:
    shards, loaded = ShardSet.open(world / "shards"), encoders.load(str(world / "ours"))
    inputs = Inputs("toy", loaded, shards, None, scans=scans)
    again = dataclasses.replace(inputs, name="other")
    rows = inputs.rows("test")
    assert again.name == "other" and again.rows("test").tolist() == rows.tolist()
    assert again.features(rows[:3]).keys == inputs.features(rows[:3]).keys
    assert again.counted(rows) == inputs.counted(rows)
    first = dataclasses.replace(inputs, scans="first")
    assert len(first.shards) == len(shards) and len(first.rows("test")) == 24


def test_outcomes_of_different_choices_are_not_compared(world: Path, tmp_path: Path, capsys: Any) -> None:
    for scans in CHOICES:
        classified(world, tmp_path / scans, "--scans", scans)
    classified(world, tmp_path / "other", "--scans", "every", model="theirs")
    for other, said in (("first", "the first scan of each study"), ("mean", "each study as the mean of its scans")):
        assert compare.main([str(tmp_path / "every"), str(tmp_path / other)]) == 1
        assert f"one result is of every scan of each study, the other of {said}" in capsys.readouterr().err
    assert compare.main([str(tmp_path / "mean"), str(tmp_path / "first")]) == 1, "their keys are the same"
    assert compare.main([str(tmp_path / "every"), str(tmp_path / "other")]) == 0
    plain = json.loads((tmp_path / "first" / "results.json").read_text())
    del plain["outcomes"][0]["provenance"]["scan_choice"]  # of a version that had no choice
    (tmp_path / "first" / "results.json").write_text(json.dumps(plain))
    classified(world, tmp_path / "again", model="theirs")
    assert compare.main([str(tmp_path / "first"), str(tmp_path / "again")]) == 0


def test_one_study_is_nothing_to_choose_from_however_many_scans_it_has(world: Path) -> None:
    inputs = Inputs("toy", encoders.load(str(world / "ours")), ShardSet.open(world / "shards"), None, scans="every")
    rows = inputs.rows("test")
    of_one = rows[inputs.studies(rows) == next(s for s in inputs.studies(rows) if scans_of(int(s)) > 1)]
    assert len(of_one) > 1
    with pytest.raises(EvalError, match="1 of 1 studies have a text of kind 'report'"):
        score_retrieval(inputs, of_one, split="test", pools=("full",), ks=(1,))


def test_scans_of_one_study_are_right_for_its_report_unless_strictly(world: Path, tmp_path: Path) -> None:
    words = ["--pool", "8", "full", "--k", "1", "10", "--repeats", "5", "--resamples", "50", "--volumes"]
    assert retrieve.main([*given(world), *words, "--scans", "every", "--same-patient", "--out", str(tmp_path)]) == 0
    outcome, volumes = read_results(tmp_path)
    assert (outcome.studies, outcome.scans, outcome.patients) == (24, len(SCANS), 12)
    assert (volumes.studies, volumes.scans, volumes.patients) == (24, len(SCANS), 12)
    inputs = Inputs("toy", encoders.load(str(world / "ours")), ShardSet.open(world / "shards"), None, scans="every")
    images = inputs.features(inputs.rows("test")).features_ND.astype(float)
    study = np.array([int(scan[:16], 16) for scan in SCANS])
    texts = inputs.texts([f"scan number{i}" for i in study])
    cosine = np.stack([texts[f"scan number{i}"] for i in study]).astype(float) @ images.T  # [text, image]
    best = np.argsort(-cosine, axis=1)[:, :10]
    alike, strict = (
        outcome.metric("recall", "text_to_image", k=10, pool="full", ties=ties)
        for ties in ("identical_texts", "strict")
    )
    assert alike is not None and strict is not None and alike.n == len(SCANS)
    assert alike.value == pytest.approx((study[best] == study[:, None]).any(axis=1).mean())
    assert strict.value == pytest.approx((best == np.arange(len(SCANS))[:, None]).any(axis=1).mean())
    assert alike.value > strict.value
    chance = outcome.metric("chance", "text_to_image", k=1, pool="full", ties="identical_texts")
    assert chance is not None and chance.value == pytest.approx(np.mean([scans_of(i) for i in study]) / len(SCANS))
    assert any("Scans of one study have the same text" in note for note in outcome.notes)
    assert any("; an image is a scan." in note for note in outcome.notes)
    # The patient's other study may be found, the query's own other scans never are.
    found, labels = images @ images.T, inputs.shards.labels()[inputs.rows("test")].astype(bool)
    some = np.flatnonzero(labels.any(axis=1))
    like = []
    for i in some:
        others = np.array([j for j in some if study[j] != study[i]])
        near = labels[others[np.argsort(-found[i, others])[:10]]]
        like.append(((labels[i] & near).sum(axis=1) / (labels[i] | near).sum(axis=1)).mean())
    mine = volumes.metric("map", "volume_to_volume", k=10, relevance="jaccard")
    assert mine is not None and mine.value == pytest.approx(np.mean(like))


def test_a_probe_learns_from_every_scan_and_draws_whole_patients(world: Path, tmp_path: Path, capsys: Any) -> None:
    labels = ["--labels", "bright"]
    few = ["--shots", "2", "--fractions", "0.3", "--draws-count", "2"]
    made = tmp_path / "draws.json"
    assert draws.main(["--data", str(world / "shards"), *labels, *few, "--scans", "every", "--out", str(made)]) == 0

    def probed(out: Path, *words: str) -> int:
        return probe.main([*given(world), *labels, "--resamples", "50", "--knn", "5", *words, "--out", str(out)])

    assert probed(tmp_path / "file", "--scans", "every", "--draws", str(made)) == 0
    assert probed(tmp_path / "fly", "--scans", "every", *few) == 0
    (outcome,), (again,) = read_results(tmp_path / "file"), read_results(tmp_path / "fly")
    assert outcome.provenance["draws_sha256"] == again.provenance["draws_sha256"] and outcome.metrics == again.metrics
    assert (outcome.studies, outcome.scans, outcome.patients) == (24, len(SCANS), 12)
    assert outcome.scores is not None and set(outcome.scores["key"]) == set(SCANS)
    learnt = outcome.metric("train_studies")
    assert learnt is not None and learnt.value == sum(scans_of(i) for i in range(VAL))
    drawn = json.loads(made.read_text())["fractions"]["0.3"][0]
    patients = {int(name[:16], 16) // 2 for name in drawn}
    whole = {f"{key(i)}.{j:02d}" for i in range(TRAIN) if i // 2 in patients for j in range(scans_of(i))}
    assert set(drawn) == whole
    capsys.readouterr()
    assert probed(tmp_path / "no", "--draws", str(made)) == 1
    assert "the file of draws was made for another data" in capsys.readouterr().err


def test_a_scan_of_the_other_kind_is_no_case(world: Path, tmp_path: Path) -> None:
    """A radiograph beside CTs, as PACS exports have them."""
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9), np.uint8)).save(picture, "PNG")
    film = Scan(array=None, image=picture.getvalue(), ext="png", modality="CR")
    with ShardWriter(tmp_path / "mixed") as writer:
        for i in range(8):
            array = np.random.default_rng(i).normal(300 if i % 2 else -300, 300, (5, 9, 9)).astype(np.int16)
            scans = (Scan(array=array, spacing_mm=(3.0, 2.0, 2.0)), *((film,) if i == 3 else ()))
            labels = {"bright": i % 2, "dark": 1 - i % 2}
            writer.write(Study(key(i), f"{i:016x}", "test", scans, Texts(report="A scan."), labels))
    words = ["--model", str(world / "ours"), "--data", str(tmp_path / "mixed"), "--task", str(world / "toy.yaml")]
    for choice in CHOICES:
        out = tmp_path / choice
        more = ["--scans", choice, "--out", str(out), "--device", "cpu", "--no-cache", "--resamples", "20"]
        assert classify.main([*words, *more]) == 0
        (outcome,) = read_results(out)
        assert (outcome.studies, outcome.scans) == (8, 8)
        assert any("left out: 1 of all splits" in note for note in outcome.notes) is (choice != "first")
