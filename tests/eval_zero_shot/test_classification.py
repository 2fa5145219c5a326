"""The whole protocol over real shards: with a toy encoder, and by its command with a release."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from data_shards.shard_set import ShardSet
from eval_zero_shot import EvalError, Task
from eval_zero_shot.classification import score_classification
from eval_zero_shot.classify import main
from eval_zero_shot.compare import compare
from eval_zero_shot.embedding import embed_images, embed_texts
from eval_zero_shot.outcome import Outcome, read_results

from .conftest import GEOMETRY, TASK, VIEW, ToyEncoder, study, tokenize
from .toy_release import write_toy_release

BINARY = Task.model_validate(
    {
        "name": "brightness",
        "kind": "classes",
        "classes": {"bright": {"words": ["bright"]}, "dark": {"words": ["dark"]}},
        "prompt_sets": {"scan": ["{} scan"], "word": ["{}", "no {}"]},
        "groups": {"all": ["bright", "dark"]},
    }
)


@dataclass
class ToyInputs:
    """What `eval_zero_shot.inputs.Inputs` is to a protocol, around an encoder that is no release."""

    loaded: Any
    shards: Any
    name: str = "toy"
    cases: str = "studies"
    asked: list[int] = field(default_factory=list)

    def features(self, rows: Any) -> Any:
        self.asked += [int(row) for row in rows]
        return embed_images(self.loaded.model, self.shards, rows, GEOMETRY, VIEW)

    def texts(self, texts: Any) -> Any:
        return embed_texts(self.loaded.model, tokenize, texts)

    def counted(self, rows: Any) -> dict[str, int]:
        patients = {self.shards.patient(int(row)) for row in rows}
        return {"studies": len(rows), "scans": len(rows), "patients": len(patients)}

    def said(self, rows: Any) -> tuple[str, ...]:
        return ()

    def provenance(self, rows: Any, split: str, **more: Any) -> dict[str, Any]:
        return {"split": split, "data_sha256": self.shards.manifest_hash, **more}


@dataclass
class ToyLoaded:
    model: ToyEncoder
    sha256: str = "0" * 64


@pytest.fixture
def inputs(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> ToyInputs:
    toy_encoder.logit_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
    return ToyInputs(ToyLoaded(toy_encoder), toy_shards)


def score(inputs: ToyInputs, task: Task = TASK, **options: Any) -> Outcome:
    return score_classification(inputs, inputs.shards.rows("test"), task, **{"resamples": 50, **options})


def test_findings_are_scored_from_embeddings_to_outcome(inputs: ToyInputs, tmp_path: Path) -> None:
    outcome = score(inputs)
    assert (outcome.headline, outcome.main.value, outcome.studies, outcome.patients) == ("auroc", 1.0, 24, 12)
    assert outcome.classes == TASK.names
    assert outcome.prompts["main"]["bright"] == {"positive": ["bright scan"], "negative": ["dark scan"]}
    assert outcome.metric("auroc", "absent_from_the_shards").reason == "no study with a known label"
    assert any("absent_from_the_shards (no study" in note for note in outcome.notes)
    assert outcome.metric("auroc", prompts="synonyms").value == 1.0
    assert outcome.metric("f1", "bright", threshold="sign").value is not None
    assert outcome.metric("f1", "bright", threshold="validation") is None
    assert outcome.metric("calibration_error", "dark", bins=15).value is not None
    assert outcome.provenance["logit_scale"] == pytest.approx(10.0)
    scores = outcome.scores
    assert set(scores["variant"]) == {"", "synonyms"} and len(scores) == 2 * 3 * 24
    bright = scores[(scores["variant"] == "") & (scores["of"] == "bright")].dropna()
    assert roc_auc_score(bright["label"], bright["score"]) == outcome.metric("auroc", "bright").value
    from eval_zero_shot.outcome import write_results

    write_results(tmp_path, [outcome])
    (again,) = read_results(tmp_path)
    assert again == outcome and len(again.scores) == len(scores)


def test_prompt_set_that_stands_for_the_task(inputs: ToyInputs) -> None:
    outcome = score(inputs, prompt_set="synonyms")
    assert outcome.provenance["prompt_set"] == "synonyms"
    assert outcome.metric("auroc", prompts="main").value == 1.0
    assert set(outcome.scores["variant"]) == {"", "main"}
    with pytest.raises(EvalError, match="no prompt set 'other'"):
        score(inputs, prompt_set="other")


def test_classes_are_scored(inputs: ToyInputs) -> None:
    outcome = score(inputs, BINARY)
    wide = outcome.scores[outcome.scores["variant"] == ""].pivot(index="key", columns="of", values=["score", "label"])
    truth, said = wide["label"].to_numpy().argmax(1), wide["score"].to_numpy().argmax(1)
    assert outcome.headline == "balanced_accuracy"
    assert outcome.main.value == pytest.approx(balanced_accuracy_score(truth, said))
    assert outcome.metric("acc1", prompts="word").value is not None
    assert outcome.metric("acc1", group="all", average="micro").value == outcome.metric("acc1").value
    assert outcome.metric("acc5") is None
    assert "balanced_accuracy over 2 prompt sets" in " ".join(outcome.notes)


def test_studies_of_none_of_the_classes_are_left_out_and_counted(inputs: ToyInputs) -> None:
    outcome = score(inputs, BINARY)  # of two bright studies the label is unknown, and they are not dark
    assert outcome.studies == 22 and len(outcome.scores) == 2 * 2 * 22
    assert any(note.startswith("2 studies have none or several") for note in outcome.notes)
    raw = BINARY.model_dump() | {"groups": {}, "classes": {"bright": {}, "other": {"label": "missing"}}}
    with pytest.raises(EvalError, match="no label missing"):
        score(inputs, Task.model_validate(raw))


def test_thresholds_come_from_another_split_and_never_from_the_test(tmp_path: Path, toy_encoder: ToyEncoder) -> None:
    from data_shards.shard_set import ShardWriter

    with ShardWriter(tmp_path / "shards") as writer:
        for i in range(40):
            writer.write(study(i, "val" if i < 20 else "test"))
    inputs = ToyInputs(ToyLoaded(toy_encoder), ShardSet.open(tmp_path / "shards"))
    rows = inputs.shards.rows("val")
    outcome = score(inputs, threshold_rows=rows, threshold_split="val")
    scores = outcome.scores[(outcome.scores["variant"] == "") & (outcome.scores["of"] == "dark")]
    at = outcome.metric("threshold", "dark", threshold="validation").value
    assert at not in set(scores["score"])
    for rule in ("validation", "prevalence", "sign", "test"):
        assert outcome.metric("f1", "dark", threshold=rule).value is not None
    for name in ("main", "synonyms"):
        assert outcome.metric("auroc", prompts=name, validation="val").value == 1.0
    assert outcome.provenance["threshold_split"] == "val"
    assert any("states no temperature" in note for note in outcome.notes)
    for split in ("test", "val"):
        with pytest.raises(EvalError, match="thresholds would be fitted on split"):
            score(inputs, split="val", threshold_rows=rows, threshold_split=split)
    (default, chosen) = compare([outcome], [outcome], resamples=20)
    assert (default.prompts, chosen.prompts, chosen.chosen) == ("default", "validation", ("main", "main"))


def test_rule_mean_cosine_is_the_mean_of_cosines(inputs: ToyInputs) -> None:
    said = {"positive": ["bright scan", "dark"], "negative": ["dark scan"]}
    raw = {"name": "merlin", "rule": "mean_cosine", "classes": {"bright": said}}
    outcome = score(inputs, Task.model_validate(raw))
    vectors = inputs.texts([*said["positive"], *said["negative"]])
    images = inputs.features(inputs.shards.rows("test")).features_ND.astype(np.float64)
    cosines = {text: images @ (v / np.linalg.norm(v.astype(np.float64))) for text, v in vectors.items()}
    expected = np.mean([cosines[t] for t in said["positive"]], axis=0) - cosines["dark scan"]
    assert outcome.scores["score"].to_numpy() == pytest.approx(expected, abs=1e-6)
    ensemble = score(inputs, Task.model_validate({**raw, "rule": "ensemble"}))
    assert ensemble.scores["score"].to_numpy() != pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_release(tmp_path_factory.mktemp("release") / "toy")


@pytest.mark.parametrize("task", [TASK, BINARY], ids=["findings", "classes"])
def test_the_command_writes_results(
    task: Task, release: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(task.model_dump(mode="json")))
    arguments = ["--model", str(release), "--data", str(toy_folder), "--task", str(file), "--no-cache"]
    arguments += ["--resamples", "20", "--device", "cpu", "--threshold-split", "val", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert task.name in shown and f"{22 if task is BINARY else 24} studies of 12 patients" in shown
    assert ("test-chosen" in shown) == (task is TASK)
    (outcome,) = read_results(tmp_path / "out")
    assert (outcome.model, outcome.task, outcome.protocol) == ("toy", task.name, "classification")
    assert outcome.main.value is not None
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert main(arguments) == 0
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    from jsonschema import validate

    schema = Path(__file__).parents[2] / "eval_zero_shot" / "results.schema.json"
    validate(json.loads(before), json.loads(schema.read_text()))


def test_the_command_says_what_is_wrong(release: Path, toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", str(release), "--data", str(toy_folder), "--task"]
    assert main([*given, "phantom", "--prompt-set", "mian"]) == 1
    assert "name one of: main, synonyms" in capsys.readouterr().err
    assert main([*given, "phantom", "--device", "cpu", "--no-cache"]) == 1
    assert "no label of task phantom" in capsys.readouterr().err
