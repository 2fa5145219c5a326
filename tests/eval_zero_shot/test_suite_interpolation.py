"""Weight interpolation as an entry of a suite: both ends shown, the merged release kept, other bases other cells."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

import encoders
from data_shards.shard_set import ShardSet, ShardWriter
from eval_zero_shot.classification import score_classification
from eval_zero_shot.compare import main as compare
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.interpolation_outcomes import ends, points
from eval_zero_shot.outcome import Outcome, read_results
from eval_zero_shot.paired import cases_of, paired_difference, require_comparable
from eval_zero_shot.run import main
from eval_zero_shot.suite_read import load_suite
from eval_zero_shot.tasks import load_task

from .conftest import TASK, study
from .toy_release import write_toy_release

TOY = TASK.model_dump(mode="json")
WORDS = {"name": "words", "classes": {"bright": {"positive": ["white"], "negative": ["black"]}}}
ENTRY = {"protocol": "interpolation", "base": "base", "tasks": ["toy.yaml", "words.yaml"], "alphas": [0.4, 0.7],
         "resamples": 100}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two models tuned from it, and studies whose labels are partly wrong, so that nothing is perfect."""
    folder = tmp_path_factory.mktemp("world")
    write_toy_release(folder / "base")
    write_toy_release(folder / "tuned", tuned=0.15)
    write_toy_release(folder / "further", tuned=0.3)
    rng = np.random.default_rng(3)
    with ShardWriter(folder / "shards") as writer:
        for i in range(60):
            labels = {"bright": int(rng.integers(2)), "dark": int(rng.integers(2))}
            writer.write(replace(study(i, "val" if i < 24 else "test"), labels=labels))
    (folder / "toy.yaml").write_text(json.dumps(TOY))
    (folder / "words.yaml").write_text(json.dumps(WORDS))
    return folder


def suite(world: Path, name: str, *entries: dict[str, Any]) -> Path:
    path = world / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": "tuning", "data": "shards", "entries": list(entries)}))
    return path


def run(path: Path, out: Path, *models: str, more: tuple[str, ...] = ("--no-cases", "--no-cache")) -> int:
    named = [model if ":" in model else str(path.parent / model) for model in models]
    return main(["--models", *named, "--suite", str(path), "--out", str(out), "--device", "cpu", *more])


def by_name(out: Path) -> dict[tuple[str, str, str], Outcome]:
    return {(o.protocol, o.task, o.model): o for o in read_results(out)}


def test_both_ends_are_shown_beside_the_merged_model_that_is_kept(
    world: Path, tmp_path: Path, repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    plain = [{"protocol": "classification", "task": f"{task}.yaml", "resamples": 100} for task in ("toy", "words")]
    path, out = suite(world, "both", *plain, ENTRY), tmp_path / "out"
    assert run(path, out, "base", "tuned") == 0, "the base itself is no failure"
    told = capsys.readouterr()
    assert "base: interpolation toy words left out: it is the base" in told.err
    found = by_name(out)
    assert {name for name in found if name[0] == "interpolation"} == {
        ("interpolation", task, "tuned") for task in ("toy", "words")
    }
    schema = json.loads((repo / "eval_zero_shot" / "results.schema.json").read_text())
    jsonschema.validate(json.loads((out / "results.json").read_text()), schema)

    (release,) = (out / "cells").glob("*/release")
    loaded, studies = encoders.load(release), ShardSet.open(world / "shards")
    assert f"The merged release lies in {release.relative_to(out)}." in found["interpolation", "toy", "tuned"].notes
    means = []
    for task in ("toy", "words"):
        merged = found["interpolation", task, "tuned"]
        alone = score_classification(
            Inputs("alone", loaded, studies, None), studies.rows("test"), load_task(str(world / f"{task}.yaml")),
            resamples=100,
        )  # fmt: skip
        assert (merged.main.value, merged.main.low) == (alone.main.value, alone.main.low)
        assert merged.provenance["merged_sha256"] == loaded.sha256 and merged.provenance["base"] == "base"
        for end, model in zip(ends(merged), ("base", "tuned"), strict=True):
            main_metric = found["classification", task, model].main
            assert (end.value, end.low, end.high) == (main_metric.value, main_metric.low, main_metric.high)
            assert end.low is not None
            difference = merged.metric("auroc_difference", model)
            again, _ = paired_difference(
                cases_of(merged), cases_of(merged, f"alpha={int(model == 'tuned')}"), resamples=100, method="percentile"
            )
            assert difference is not None
            assert difference.value == pytest.approx(merged.main.value - main_metric.value)
            assert again.value == pytest.approx(difference.value), "scores of the ends lie beside the merged model's"
        assert [m.at["alpha"] for m in points(merged, "test")] == [0, 0.4, 0.7, 1]
        means.append([m.value for m in points(merged, "val")])
    alpha = [0, 0.4, 0.7, 1][int(np.argmax(np.sum(means, axis=0)))]
    assert found["interpolation", "toy", "tuned"].provenance["alpha"] == alpha
    assert loaded.config["provenance"]["merged"]["alpha"] == alpha and alpha in (0.4, 0.7), "else nothing is merged"

    toy = found["interpolation", "toy", "tuned"]
    assert re.search(rf"tuned \(a = {alpha}\) +{toy.main.value:.3f}", told.out)
    assert all(re.search(rf"– {end} +0\.\d+", told.out) for end in (r"base \(a = 0\)", r"tuned \(a = 1\)"))
    text = (out / "report.html").read_text(encoding="utf-8")
    base, tuned = (found["classification", "toy", model].main.value for model in ("base", "tuned"))
    shown = f"a = {alpha:g}; base {base:.3f}, tuned {tuned:.3f}"
    (overview,) = re.findall(r'<table id="overview".*?</table>', text)
    assert shown in overview and f"Merged with base, macro AUROC {toy.main.value:.3f}".lower() in text.lower()
    (table,) = re.findall(r'<table id="ends-0".*?</table>', text)
    assert all(f"{value:.3f}" in table for value in (base, toy.main.value, tuned))
    assert (out / "plots" / "interpolation.png").stat().st_size > 5000
    with (out / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["protocol"] == "interpolation"]
    assert next((row["dataset"], row["task"], float(row["value"])) for row in rows) == (
        "toy", "weight_interpolation", toy.main.value,
    )  # fmt: skip


def test_a_merged_model_is_kept_with_its_release_and_another_base_is_another_cell(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = suite(world, "kept", ENTRY), tmp_path / "out"
    assert run(path, out, "tuned") == 0
    body = (out / "results.json").read_bytes()
    (release,) = (out / "cells").glob("*/release")
    weights = release / "open_clip_model.safetensors"
    written, bytes_ = weights.stat().st_mtime_ns, weights.read_bytes()
    capsys.readouterr()

    shutil.copytree(world / "base", tmp_path / "elsewhere")
    moved = suite(world, "moved", {**ENTRY, "base": str(tmp_path / "elsewhere")})
    for again in (path, moved):
        assert run(again, out, "tuned") == 0
        assert "(kept)" in capsys.readouterr().err, "the same base, wherever it lies"
        assert weights.stat().st_mtime_ns == written
    assert (out / "results.json").read_bytes() == body

    for lost in (weights, release / "release.json", release.parent / "results.json"):  # stopped, or a full disk
        lost.unlink()
        (release.parent / ".release.writing-1").mkdir(exist_ok=True)
        assert run(path, out, "tuned") == 0
        assert "(kept)" not in capsys.readouterr().err
        assert weights.read_bytes() == bytes_ and (out / "results.json").read_bytes() == body
        assert not (release.parent / ".release.writing-1").exists()

    assert run(suite(world, "other", {**ENTRY, "base": "further"}), out, "tuned") == 0
    assert "(kept)" not in capsys.readouterr().err
    assert len(list((out / "cells").glob("*/release/release.json"))) == 2
    other = by_name(out)["interpolation", "toy", "tuned"]
    assert other.provenance["base"] == "further" and weights.read_bytes() == bytes_


def test_a_sweep_that_fails_leaves_the_model_as_it_was(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "stone.yaml").write_text(
        json.dumps({"name": "stone", "classes": {"stone": {"positive": ["stone"], "negative": ["no stone"]}}})
    )
    plain = {"protocol": "classification", "task": "toy.yaml", "resamples": 0}
    lost = {**ENTRY, "tasks": ["toy.yaml", "stone.yaml"]}
    path = suite(world, "fails", plain, lost, {**plain, "name": "after", "seed": 1})
    assert run(path, tmp_path / "out", "tuned") == 1
    assert "error: tuned, interpolation toy stone: no label of task stone" in capsys.readouterr().err
    before, after = read_results(tmp_path / "out")
    assert (before.task, after.task) == ("toy", "after") and before.main.value == after.main.value
    assert not list((tmp_path / "out" / "cells").glob("*/release"))


def test_models_are_compared_by_what_merging_makes_of_them(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base is a model of the run, named; a model that is no release is left out."""
    (tmp_path / "elsewhere").mkdir()
    entry = {**ENTRY, "tasks": [str(world / "toy.yaml")], "resamples": 0, "name": "souped"}
    body = {"name": "tuning", "data": str(world / "shards"), "entries": [entry]}
    path, out = tmp_path / "elsewhere" / "suite.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(body))
    models = [str(world / name) for name in ("tuned", "further", "base")]
    words = ["--models", *models, "pixels:ct", "--suite", str(path), "--out", str(out), "--device", "cpu"]
    assert main([*words, "--no-cache", "--no-cases"]) == 0
    told = capsys.readouterr().err
    assert "base: interpolation souped left out" in told and "pixels:ct: interpolation souped left out" in told
    assert set(by_name(out)) == {("interpolation", "souped", model) for model in ("tuned", "further")}
    (found,) = json.loads((out / "comparisons" / "further" / "comparison.json").read_text())["comparisons"]
    assert (found["protocol"], found["task"], found["reference"]) == ("interpolation", "souped", "tuned")
    values = {model: one.main.value for (*_, model), one in by_name(out).items()}
    assert found["difference"] == pytest.approx(values["further"] - values["tuned"])
    assert compare([str(out), str(out), "--model-a", "tuned", "--model-b", "further"]) == 0
    ours, theirs = (one for one in read_results(out) if one.protocol == "interpolation")
    other = replace(theirs, provenance={**theirs.provenance, "base_sha256": "0" * 64})
    with pytest.raises(EvalError, match="the two results differ in base_sha256"):
        require_comparable(ours, other)

    path.write_text(yaml.safe_dump({**body, "entries": [{**entry, "base": "nobody"}]}))
    assert main([*words, "--no-cache"]) == 1
    assert "interpolation souped: the base is neither a release folder nor a model here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"validation_split": "test"}, "entries.0: validation_split and split are both 'test'"),
        ({"alphas": [0.5, 1.5]}, "entries.0.alphas.1: "),
        ({"tasks": []}, "entries.0.tasks: is empty"),
        ({"task": "toy.yaml"}, r"entries.0.task: is no key here; did you mean tasks\?"),
    ],
)
def test_mistakes_of_an_entry_are_named(world: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(EvalError, match=said):
        load_suite(suite(world, "mistaken", {**ENTRY, **change}))


def test_what_cannot_be_chosen_fairly_is_said_before_anything_is_loaded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(suite(world, "split", {**ENTRY, "validation_split": "dev"}), tmp_path / "out", "nowhere") == 1
    assert "interpolation toy words: no study in split 'dev'" in capsys.readouterr().err
    twice = suite(world, "twice", ENTRY, {**ENTRY, "tasks": ["words.yaml"], "seed": 1})
    assert run(twice, tmp_path / "out", "nowhere") == 1
    assert "two entries give interpolation of words" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
