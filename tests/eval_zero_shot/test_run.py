"""The whole suite from its command line: cells that are kept, tables, comparisons, the page, and what goes wrong."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml

from data_shards.shard_set import ShardWriter
from eval_zero_shot.audit.__main__ import main as audit
from eval_zero_shot.inputs import choose_rows
from eval_zero_shot.outcome import read_results
from eval_zero_shot.run import main
from eval_zero_shot.spreadsheet import COLUMNS

from .conftest import TASK, study
from .toy_release import write_toy_release

TOY = TASK.model_dump(mode="json")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_release(tmp_path_factory.mktemp("release") / "first")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of model with other weights."""
    return write_toy_release(tmp_path_factory.mktemp("release") / "second", seed=1)


def run(suite: Path, out: Path, *models: Path, more: tuple[str, ...] = ()) -> int:
    words = ["--models", *map(str, models), "--suite", str(suite), "--out", str(out), "--device", "cpu"]
    return main([*words, "--cache", str(out.parent / "cache"), *more])


def cells(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*/results.json")}


def test_two_models_are_scored_compared_and_shown(
    suite: Path, release: Path, second: Path, tmp_path: Path, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(suite, out, release, second) == 0
    told = capsys.readouterr()
    assert "[4/4] second: retrieval" in told.err and "A: second, B: first" in told.out
    schema = json.loads((repo / "eval_zero_shot" / "results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((out / "results.json").read_text(), parse_constant=pytest.fail), schema)
    outcomes = read_results(out)
    assert [(o.model, o.protocol) for o in outcomes] == [
        ("first", "classification"), ("first", "retrieval"), ("second", "classification"), ("second", "retrieval"),
    ]  # fmt: skip
    assert all(o.scores is not None and len(o.scores) for o in outcomes)
    with (out / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS and len(lines) == 4
    assert [line["task"] for line in lines[:2]] == ["zeroshot_classification", "zeroshot_retrieval"]
    assert float(lines[0]["auroc"]) == outcomes[0].main.value
    recall = outcomes[1].metric("recall", "text_to_image", k=1, pool="full", ties="identical_texts")
    assert recall is not None and float(lines[1]["image_retrieval_recall@1"]) == recall.value
    compared = json.loads((out / "comparisons" / "second" / "comparison.json").read_text())["comparisons"]
    assert {(c["model"], c["reference"]) for c in compared} == {("second", "first")}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "toys" in page and "second" in page


def test_what_is_scored_is_kept_and_what_changed_is_scored_again(
    suite: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(suite, out, release, more=("--no-cases",)) == 0
    first, body = cells(out), (out / "results.json").read_bytes()
    table = pd.read_parquet(out / "scores.parquet")
    capsys.readouterr()
    assert run(suite, out, release, more=("--no-cases",)) == 0
    assert capsys.readouterr().err.count("(kept)") == 2
    assert cells(out) == first and (out / "results.json").read_bytes() == body
    pd.testing.assert_frame_equal(pd.read_parquet(out / "scores.parquet"), table)
    other = json.loads(json.dumps(TOY))
    other["classes"]["bright"]["prompts"]["main"]["positive"] = ["a bright scan"]
    (tmp_path / "toy.yaml").write_text(json.dumps(other))
    assert run(suite, out, release, more=("--no-cases",)) == 0
    assert capsys.readouterr().err.count("(kept)") == 1, "other words are another cell, retrieval is the same"
    assert len(cells(out)) == 3


def test_what_cannot_be_scored_is_told_and_the_rest_goes_on(
    suite: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = yaml.safe_load(suite.read_text())
    stone = {"name": "other", "classes": {"stone": {"positive": ["a stone"], "negative": ["no stone"]}}}
    (tmp_path / "stone.yaml").write_text(json.dumps(stone))
    body["entries"].insert(0, {"protocol": "classification", "task": "stone.yaml", "name": "lost"})
    suite.write_text(yaml.safe_dump(body))
    assert run(suite, tmp_path / "out", release, tmp_path / "nowhere", more=("--no-cases",)) == 1
    told = capsys.readouterr().err
    assert "error: " in told and "classification lost: no label of task other" in told
    assert [o.task for o in read_results(tmp_path / "out")] == ["toy", "retrieval_report"]


def test_an_entry_that_a_model_cannot_read_fails_alone_and_the_page_is_written(
    suite: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "again.yaml").write_text(json.dumps({**TOY, "name": "again"}))
    body = yaml.safe_load(suite.read_text())
    body["entries"][1] = {**body["entries"][0], "task": "again.yaml", "scans": "together"}
    suite.write_text(yaml.safe_dump(body))
    assert run(suite, tmp_path / "out", release) == 1
    assert "together" in capsys.readouterr().err
    assert [o.task for o in read_results(tmp_path / "out")] == ["toy"]
    assert "toy" in (tmp_path / "out" / "report.html").read_text()


def test_two_entries_of_one_name_are_refused(
    suite: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = yaml.safe_load(suite.read_text())
    body["entries"].append({**body["entries"][0], "seed": 1})
    suite.write_text(yaml.safe_dump(body))
    assert run(suite, tmp_path / "out", release, more=("--no-cases",)) == 1
    assert "two entries give classification of toy" in capsys.readouterr().err
    body["entries"][-1]["name"] = "again"
    suite.write_text(yaml.safe_dump(body))
    assert run(suite, tmp_path / "out", release, more=("--no-cases",)) == 0
    assert {o.task for o in read_results(tmp_path / "out")} >= {"toy", "again"}


def test_every_place_that_is_not_there_is_told_at_once(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = yaml.safe_load(suite.read_text())
    body["entries"][0]["split"] = "tset"
    body["entries"][1]["data"] = "shrds"
    suite.write_text(yaml.safe_dump(body))
    assert main(["--model", "nowhere", "--suite", str(suite), "--reference", "zzz"]) == 1
    told = capsys.readouterr().err
    for said in (
        "3 mistakes", "the reference 'zzz'", "no study in split 'tset'", "there is no folder or file 'shrds'",
    ):  # fmt: skip
        assert said in told
    assert str(tmp_path) not in told


def test_without_a_suite_the_command_line_is_one(
    release: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "toy.yaml"
    task.write_text(json.dumps(TOY))
    words = ["--model", str(release), "--data", str(toy_folder), "--task", str(task), "--resamples", "100"]
    assert main([*words, "--pool", "8", "--device", "cpu", "--no-cache"]) == 0
    told = capsys.readouterr().out
    assert "bright" in told and "macro" in told and "toy classification" in told
    assert main([*words, "--pool", "8x", "--device", "cpu"]) == 1
    assert "numbers, or full" in capsys.readouterr().err


def test_what_is_wrong_is_said_before_anything_is_loaded(
    suite: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--task", "nonesuch", "--data", str(toy_folder)], "no zero-shot task 'nonesuch'"),
        (["--data", str(toy_folder)], "there is nothing to score"),
        (["--suite", str(suite), "--data", str(toy_folder)], "--suite beside --data"),
        (["--suite", str(tmp_path / "gone.yaml")], "there is no suite 'gone.yaml'"),
        (["--suite", str(suite), "--reference", "zzz"], "the reference 'zzz' is no model here"),
        (["--task", "phantom", "--data", str(toy_folder), "--split", "tset"], "no study in split 'tset'"),
        (["--suite", str(suite), "--out", str(suite)], "--out is a file that exists"),
    ):
        assert main(["--model", "nowhere", *words]) == 1
        assert said in capsys.readouterr().err


def test_choice_of_rows_is_fixed() -> None:
    rows = np.arange(100, 200)
    chosen = choose_rows(rows, 10)
    assert len(np.unique(chosen)) == 10
    assert np.array_equal(chosen, choose_rows(rows[::-1], 10))
    assert np.array_equal(choose_rows(rows, None), rows)
    assert np.array_equal(choose_rows(rows, 500), rows)


def test_a_training_set_that_was_replaced_is_audited_again(
    release: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "train"
    with ShardWriter(train) as writer:
        for i in range(100, 124):
            writer.write(study(i, "train"))
    (tmp_path / "toy.yaml").write_text(json.dumps(TOY))
    entry = {"protocol": "audit", "task": "toy.yaml", "train": ["train"], "resamples": 100}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"name": "a", "data": str(toy_folder), "entries": [entry]}))
    out = tmp_path / "out"
    assert run(tmp_path / "suite.yaml", out, release, more=("--no-cases",)) == 0
    assert run(tmp_path / "suite.yaml", out, release, more=("--no-cases",)) == 0
    assert "(kept)" in capsys.readouterr().err
    shutil.rmtree(train)
    with ShardWriter(train) as writer:  # the test studies themselves, at the same place
        for i in range(24):
            writer.write(replace(study(i, "train"), key=f"{i + 500:016x}"))
    assert run(tmp_path / "suite.yaml", out, release, more=("--no-cases",)) == 0
    assert "(kept)" not in capsys.readouterr().err
    (audit,) = read_results(out)
    assert any(note.startswith("FAIL identical images") for note in audit.notes), audit.notes


def test_the_cell_of_an_audit_lists_the_leaked_pairs_as_the_command_does(
    release: Path, toy_folder: Path, tmp_path: Path
) -> None:
    with ShardWriter(tmp_path / "train") as writer:
        for i in range(100, 123):
            writer.write(study(i, "train"))
        writer.write(replace(study(6, "train"), key=f"{506:016x}", patient=f"{2000:016x}"))  # of the test studies
    (tmp_path / "toy.yaml").write_text(json.dumps(TOY))
    entry = {"protocol": "audit", "task": "toy.yaml", "train": ["train"], "resamples": 100}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"name": "a", "data": str(toy_folder), "entries": [entry]}))
    out, more = tmp_path / "out", ("--no-cases",)
    assert run(tmp_path / "suite.yaml", out, release, more=more) == 0
    (file,) = (out / "cells").glob("*/pairs.csv")
    with file.open(newline="") as opened:
        pairs = [row for row in csv.DictReader(opened) if row["kind"] == "exact"]
    assert [(row["test_key"], row["train_key"]) for row in pairs] == [(f"{6:016x}", f"{506:016x}")]
    words = ["--model", str(release), "--data", str(toy_folder), "--train", str(tmp_path / "train"), "--device", "cpu"]
    words += ["--task", str(tmp_path / "toy.yaml"), "--resamples", "100", "--cache", str(tmp_path / "cache")]
    assert audit([*words, "--out", str(tmp_path / "alone")]) == 0
    assert file.read_bytes() == (tmp_path / "alone" / "pairs.csv").read_bytes()
    file.unlink()
    assert run(tmp_path / "suite.yaml", out, release, more=more) == 0
    assert file.read_bytes() == (tmp_path / "alone" / "pairs.csv").read_bytes(), "a cell that lost it was made again"


def test_a_damaged_cell_is_scored_again(suite: Path, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(suite, out, release, more=("--no-cases",)) == 0
    for table in (out / "cells").glob("*/scores.parquet"):
        table.write_bytes(b"")
    assert run(suite, out, release, more=("--no-cases",)) == 0
    assert all(o.scores is not None for o in read_results(out))


def test_a_model_without_texts_and_one_that_is_not_there_cost_themselves_alone(
    suite: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--models", "pixels:ct", str(tmp_path / "nowhere"), str(release), "--suite", str(suite), "--out", str(out)]
    assert main([*words, "--device", "cpu", "--no-cache"]) == 1
    told = capsys.readouterr().err
    assert "has no text tower" in told and "no comparison: the reference pixels:ct has no results" in told
    assert {o.model for o in read_results(out)} == {"first"}
    assert (out / "report.html").is_file()
    body = (out / "results.json").read_text()
    assert str(tmp_path) not in body, "no path of this machine in a file that is handed on"


def test_what_cannot_be_compared_costs_nothing_else(
    suite: Path, release: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = yaml.safe_load(suite.read_text())
    body["entries"][1]["pools"] = [64]  # more than there are studies
    suite.write_text(yaml.safe_dump(body))
    assert run(suite, tmp_path / "out", release, second, more=("--no-cases",)) == 0
    assert "not compared: retrieval of task retrieval_report" in capsys.readouterr().err
    compared = json.loads((tmp_path / "out" / "comparisons" / "second" / "comparison.json").read_text())["comparisons"]
    assert {c["task"] for c in compared} == {"toy"}


def test_the_validation_split_itself_can_be_scored(release: Path, toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(json.dumps(TOY))
    words = ["--model", str(release), "--data", str(toy_folder), "--task", str(tmp_path / "toy.yaml"), "--split", "val"]
    assert main([*words, "--pool", "--device", "cpu", "--no-cache", "--resamples", "0"]) == 0


def test_two_models_of_one_name_are_refused_before_anything_is_scored(
    suite: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(suite, tmp_path / "out", release, release) == 1
    assert "two models are called first" in capsys.readouterr().err and not (tmp_path / "out").exists()
