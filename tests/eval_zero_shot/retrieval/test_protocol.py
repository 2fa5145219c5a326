"""Retrieval of a model on real shards: every kind of text, what is left out, per-query scores, the command line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_shards.schema import Caption, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from eval_zero_shot import EvalError
from eval_zero_shot.compare import compare
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.outcome import Outcome, read_results, write_results
from eval_zero_shot.paired import require_comparable
from eval_zero_shot.retrieval.protocol import score_retrieval, score_volumes
from eval_zero_shot.retrieve import main
from eval_zero_shot.suite_file import Retrieval

from ..conftest import GEOMETRY, VIEW, ToyEncoder, study, tokenize
from ..toy_release import write_toy_release


@pytest.fixture(scope="module")
def told_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 studies: findings in all but five, an impression that every other study shares, one to three captions."""
    folder = tmp_path_factory.mktemp("told") / "shards"
    with ShardWriter(folder) as writer:
        for i in range(40):
            word = "bright" if i % 2 else "dark"
            texts = Texts(
                findings="" if i % 8 == 7 else f"{word} scan number{i}",
                impression="bright scan" if i % 2 else f"dark scan number{i}",
                captions=tuple(Caption(f"{word} caption{i} part{c}", 1.0) for c in range(1 + i % 3)),
            )
            writer.write(replace(study(i), texts=texts))
    return folder


@pytest.fixture
def inputs(told_folder: Path) -> Inputs:
    loaded = SimpleNamespace(
        model=ToyEncoder(), tokenizer=tokenize, geometry=GEOMETRY, view=VIEW, sha256="0", kind="clip"
    )
    return Inputs("toy", loaded, ShardSet.open(told_folder), None)


def score(inputs: Inputs, **options: object) -> Outcome:
    options = {"pools": (8, 32, "full"), "ks": (1, 5, 10), "repeats": 4, "resamples": 50, **options}
    return score_retrieval(inputs, options.pop("rows", inputs.rows("test")), split="test", **options)  # type: ignore[arg-type]


def test_studies_without_the_section_are_left_out_on_both_sides_and_counted(inputs: Inputs) -> None:
    found = score(inputs, text="findings")
    assert (found.task, found.studies) == ("retrieval_findings", 35)
    assert any(note.startswith("5 studies without a text of kind findings") for note in found.notes)
    assert score(inputs, text="impression").studies == 40
    with pytest.raises(EvalError, match="0 of 1 studies have a text of kind 'findings'"):
        score(inputs, rows=inputs.rows("test")[7:8], text="findings")


def test_strict_and_tie_aware_are_reported_apart_with_their_chance(inputs: Inputs) -> None:
    found = score(inputs, text="impression")  # 20 studies share one impression
    at = {"k": 5, "pool": "full"}
    for direction in ("text_to_image", "image_to_text"):
        values = {t: found.metric("recall", direction, **at, ties=t).value for t in ("strict", "identical_texts")}
        assert values["strict"] < values["identical_texts"]
        chance = {t: found.metric("chance", direction, **at, ties=t).value for t in ("strict", "identical_texts")}
        assert chance["strict"] == pytest.approx(5 / 40)
        assert chance["identical_texts"] > 2 * chance["strict"]


def test_what_papers_report_is_counted_unless_asked_otherwise(release: Path, told_folder: Path, tmp_path: Path) -> None:
    """R@1 and R@8 in pools (Merlin), R@5 and more among all (CT-RATE); a suite's entry asks the same."""
    words = ["--model", str(release), "--data", str(told_folder), "--device", "cpu", "--no-cache", "--resamples", "20"]
    assert main([*words, "--repeats", "3", "--out", str(tmp_path)]) == 0
    (found,) = read_results(tmp_path)
    asked = {(m.at["pool"], m.at["k"]) for m in found.metrics if m.name == "recall"}
    assert {(pool, k) for pool in (32, 64, 128) for k in (1, 8)} <= asked
    assert {("full", k) for k in (5, 10, 50, 100)} <= asked
    for k in (1, 8):
        recall = found.metric("recall", "text_to_image", k=k, pool=32, ties="strict")
        assert recall is not None and recall.value is not None
    entry = Retrieval(protocol="retrieval")
    assert {(pool, k) for pool in entry.pools for k in entry.ks} == asked


def test_noise_of_cutting_pools_and_of_patients_are_two_metrics(inputs: Inputs) -> None:
    at = {"k": 1, "pool": 8, "ties": "strict"}
    found = score(inputs, text="impression", short_pool=True)
    sampling, cutting = (found.metric("recall", "text_to_image", **at, **more) for more in ({}, {"noise": "partition"}))
    assert (sampling.method, cutting.method) == ("percentile", "partition")
    assert sampling.value == pytest.approx(cutting.value, abs=1e-12)  # 40 studies fill five pools of 8
    short = found.metric("recall", "text_to_image", **at | {"pool": 32}, noise="partition", short_pool="kept")
    assert short.value > found.metric("recall", "text_to_image", **at | {"pool": 32}, noise="partition").value
    assert score(inputs).metric("recall", "text_to_image", **at, noise="partition", short_pool="kept") is None


def test_what_cannot_be_scored_is_there_with_its_reason(inputs: Inputs) -> None:
    found = score(inputs, pools=(8, 64), ks=(1, 10))
    assert (
        found.metric("recall", "text_to_image", k=10, pool=8, ties="strict").reason == "k 10 is more than the pool of 8"
    )
    assert found.metric("recall", "image_to_text", k=1, pool=64, ties="strict").reason == (
        "40 studies do not fill one pool of 64"
    )
    assert found.headline == "recall_at_1_in_8"
    nothing = score(inputs, pools=(64,))
    assert nothing.main.value is None and "do not fill" in nothing.main.reason


def test_the_headline_is_the_mean_of_the_scores_that_models_are_compared_by(inputs: Inputs) -> None:
    found = score(inputs, pools=("full", 32), text="impression")
    assert found.headline == "recall_at_1_in_full"
    main_rows = found.scores[found.scores["variant"] == ""]
    assert len(main_rows) == 80 and set(main_rows["of"]) == {"text_to_image", "image_to_text"}
    assert main_rows["score"].mean() == pytest.approx(found.main.value)
    each = [found.metric("recall", d, k=1, pool="full", ties="identical_texts").value for d in set(main_rows["of"])]
    assert found.main.value == pytest.approx(np.mean(each))
    ranks = found.scores[found.scores["variant"] == "rank,pool=full,ties=strict"]
    one = found.metric("median_rank", "text_to_image", pool="full", ties="strict")
    assert ranks[ranks["of"] == "text_to_image"]["score"].median() == one.value
    (same,) = compare([found], [replace(found, model="other")], resamples=50)
    assert same.difference.value == 0.0 and same.mark == "tie"


def test_captions_are_queries_each_and_a_study_has_several_right_answers(inputs: Inputs) -> None:
    found = score(inputs, text="captions")
    texts = sum(1 + i % 3 for i in range(40))
    assert found.metric("recall", "text_to_image", k=1, pool="full", ties="strict").n == texts
    assert found.metric("recall", "image_to_text", k=1, pool="full", ties="strict").n == 40
    expected = np.mean([(1 + i % 3) / texts for i in range(40)])
    assert found.metric("chance", "image_to_text", k=1, pool="full", ties="strict").value == pytest.approx(expected)
    assert "several texts" in found.metric("recall", "text_to_image", k=1, pool=8, ties="strict").reason
    assert len(found.scores[found.scores["variant"] == ""].groupby(["key", "of"])) == texts + 40


def test_k_is_held_against_what_a_query_chooses_from(inputs: Inputs) -> None:
    """Four studies with seven captions: among five an image's caption may be, and not a caption's image."""
    found = score(inputs, rows=inputs.rows("test")[:4], text="captions", pools=("full",), ks=(1, 5, 8))
    at = {"pool": "full", "ties": "strict"}
    value = found.metric("recall", "image_to_text", k=5, **at)
    assert value.value is not None and value.n == 4
    chance = found.metric("chance", "image_to_text", k=5, **at).value
    assert chance == pytest.approx(np.mean([1 - math.comb(7 - c, 5) / math.comb(7, 5) for c in (1, 2, 3, 1)]))
    for direction, k, size in (("text_to_image", 5, 4), ("text_to_image", 8, 4), ("image_to_text", 8, 7)):
        assert found.metric("recall", direction, k=k, **at).reason == f"k {k} is more than the pool of {size}"


def test_results_are_of_the_published_form_and_read_back(inputs: Inputs, tmp_path: Path, repo: Path) -> None:
    import jsonschema

    outcomes = [score(inputs), score_volumes(inputs, inputs.rows("test"), split="test", ks=(1, 5), resamples=50)]
    stored = write_results(tmp_path, outcomes)
    schema = json.loads((repo / "eval_zero_shot" / "results.schema.json").read_text())
    jsonschema.validate(json.loads(stored.read_text()), schema)
    assert read_results(tmp_path) == outcomes


def test_volumes_find_their_like_and_name_the_definition(inputs: Inputs) -> None:
    found = score_volumes(inputs, inputs.rows("test"), split="test", labels=("dark",), ks=(1, 5), resamples=50)
    assert found.headline == "map_at_5_jaccard"
    assert found.main.value == found.metric("map", "volume_to_volume", k=5, relevance="jaccard").value == 1.0
    exact = found.metric("map", "volume_to_volume", k=5, relevance="exact_labels")
    chance = found.metric("chance", "volume_to_volume", k=5, relevance="exact_labels")
    assert exact.value > 0.9 and 0.4 < chance.value < 0.6
    assert any("20 studies left out: no finding" in note for note in found.notes)
    with_own = score_volumes(inputs, inputs.rows("test"), split="test", labels=("dark",), ks=(1, 5), resamples=50,
                             same_patient=True)  # fmt: skip
    with pytest.raises(EvalError, match="the two results differ in same_patient"):
        require_comparable(found, with_own)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained dual encoder of this project, released."""
    return write_toy_release(tmp_path_factory.mktemp("release") / "toy")


def test_the_command_scores_a_release_and_writes_results(
    release: Path, told_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(release), "--data", str(told_folder), "--device", "cpu", "--no-cache", "--resamples", "20"]
    words += ["--pool", "8", "full", "--k", "1", "5", "--repeats", "3"]
    assert main([*words, "--text", "findings,impression", "--volumes", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "retrieval_impression" in out and "chance" in out
    found = read_results(tmp_path)
    assert [o.task for o in found] == ["retrieval_findings", "retrieval_impression", "retrieval_volumes"]
    assert found[0].model == "toy" and found[0].main.value is not None
    assert found[0].scores is not None
    for wrong, said in (
        (["--text", "abstract"], "no such kind"),
        (["--pool", "0"], "below 1"),
        (["--split", "x"], "x"),
    ):
        assert main([*words, *wrong]) == 1
        assert said in capsys.readouterr().err
