"""A whole evaluation over real shards with a toy encoder: numbers, files, refusals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import encoders
from data_shards.shard_set import ShardSet
from encoders.dual import build_dual
from encoders.release import write_release
from eval_zero_shot import EvalError, Finding, Task
from eval_zero_shot.inputs import choose_rows
from eval_zero_shot.results import Results, print_table
from eval_zero_shot.run import evaluate, main

from .conftest import GEOMETRY, TASK, VIEW, ToyEncoder, tokenize


def run(shards: ShardSet, model: ToyEncoder, **options: object) -> Results:
    options = {"resamples": 50, "pools": (8,), "repeats": 5, **options}
    rows = options.pop("rows", shards.rows("test"))
    return evaluate(model, tokenize, shards, rows, GEOMETRY, VIEW, options.pop("task", TASK), **options)


def test_toy_task_is_solved(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    out = run(toy_shards, toy_encoder)
    assert out.macro == 1.0
    assert out.per_finding["bright"].n_unknown == 4
    assert out.per_finding["dark"].n_unknown == 0
    assert (out.studies, out.patients) == (24, 12)
    assert out.per_finding["dark"].pos_patients == 12
    assert out.per_finding["dark"].too_few
    assert out.excluded == {"absent_from_the_shards": "no study with a known label"}
    assert out.synonym_macro == 1.0
    assert out.per_finding["bright"].synonym_auroc == 1.0
    recall = out.recall("text_to_image", k=1, pool=8)
    assert recall is not None
    assert recall.value > recall.chance > recall.chance_plain


def test_files_hold_what_the_results_say(toy_shards: ShardSet, toy_encoder: ToyEncoder, tmp_path: Path) -> None:
    out = run(toy_shards, toy_encoder, out=tmp_path / "a" / "b", provenance={"split": "test"})
    folder = tmp_path / "a" / "b"
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "scores.csv", "scores.parquet"]
    stored = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert stored == json.loads(json.dumps(out.to_dict()))
    assert stored["results_version"] == 1
    assert stored["provenance"]["split"] == "test"
    assert stored["provenance"]["geometry_sha256"] == GEOMETRY.identity
    assert stored["provenance"]["data_sha256"] == toy_shards.manifest_hash
    with (folder / "scores.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["finding"], line["prompts"]) == ("bright", "main")]
    assert len(lines) == 24
    known = [line for line in lines if line["label"]]
    auroc = roc_auc_score([int(line["label"]) for line in known], [float(line["score"]) for line in known])
    assert auroc == out.per_finding["bright"].auroc


def test_two_evaluations_write_the_same_bytes(toy_shards: ShardSet, toy_encoder: ToyEncoder, tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.rand(1), np.random.rand()  # the world moves on between them
        run(toy_shards, toy_encoder, out=tmp_path / name)
    for file in ("results.json", "scores.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_results_that_cannot_be_written_leave_the_old_ones(
    toy_shards: ShardSet, toy_encoder: ToyEncoder, tmp_path: Path
) -> None:
    out = run(toy_shards, toy_encoder, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError):
        replace(out, macro=float("nan"), cases=replace(out.cases, keys=out.cases.keys[::-1])).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_resamples_and_pools_it_is_cheap(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    out = run(toy_shards, toy_encoder, resamples=0, pools=())
    assert out.macro == 1.0
    assert out.macro_interval is None
    assert out.retrieval == ()
    assert len(toy_encoder.texts_seen) == len(TASK.texts())  # no report was encoded
    json.dumps(out.to_dict(), allow_nan=False)


def test_another_geometry_is_refused_unless_told(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    stored = replace(GEOMETRY, spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(EvalError, match=r"another geometry.*spacing_mm"):
        run(toy_shards, toy_encoder, stored_geometry=stored)
    out = run(toy_shards, toy_encoder, stored_geometry=stored, allow_geometry_mismatch=True)
    assert out.provenance["stored_geometry_sha256"] != out.provenance["geometry_sha256"]
    run(toy_shards, toy_encoder, stored_geometry=replace(stored, spacing_mm=GEOMETRY.spacing_mm))


def test_a_task_of_classes_is_for_another_command(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    classes = {"bright": {"prompts": ["bright"]}, "dark": {"prompts": ["dark"]}}
    task = Task.model_validate({"name": "brightness", "kind": "classes", "classes": classes})
    with pytest.raises(EvalError, match=r"eval_zero_shot\.classify"):
        run(toy_shards, toy_encoder, task=task)
    assert toy_encoder.images_seen == 0, "said before hours of encoding"


def test_task_for_other_labels_is_refused(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    task = Task(name="other", classes={"stone": Finding(positive=("scan",), negative=("no scan",))})
    with pytest.raises(EvalError, match=r"no label of task other.*\n.*\n.*bright, dark"):
        run(toy_shards, toy_encoder, task=task)


def test_no_study_is_refused(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    with pytest.raises(EvalError, match="no study to evaluate"):
        run(toy_shards, toy_encoder, rows=np.array([], dtype=int))


def test_table_shows_excluded_findings_and_chance(toy_shards: ShardSet, toy_encoder: ToyEncoder) -> None:
    from rich.console import Console

    console = Console(record=True, width=140, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_table(run(toy_shards, toy_encoder), console)
    shown = console.export_text()
    for part in (
        "24 studies of 12 patients",
        "too few cases",
        "Not in the macro mean: absent_from_the_shards",
        "× chance",
    ):
        assert part in shown


def test_choice_of_rows_is_fixed() -> None:
    rows = np.arange(100, 200)
    chosen = choose_rows(rows, 10)
    assert len(np.unique(chosen)) == 10
    assert np.array_equal(chosen, choose_rows(rows[::-1], 10))
    assert np.array_equal(choose_rows(rows, None), rows)
    assert np.array_equal(choose_rows(rows, 500), rows)


def test_command_line_says_what_is_wrong(toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "nowhere", "--data", str(toy_folder), "--task", "nonesuch"]) == 1
    assert "no zero-shot task 'nonesuch'" in capsys.readouterr().err


def test_command_line_names_a_missing_split(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "toy.yaml"
    task.write_text(json.dumps(TASK.model_dump(mode="json")))
    assert main(["--model", "nowhere", "--data", str(toy_folder), "--task", str(task), "--split", "tset"]) == 1
    assert "no sample in split 'tset'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained dual encoder of this project, released."""
    torch.manual_seed(0)
    vision = {"timm_model_name": "voxvit_tiny.p-2x4x4_i-4x8x8_c-1_l-1", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**vision, "image_size": 8}, "text_cfg": text}
    folder = tmp_path_factory.mktemp("release") / "toy"
    return write_release(folder, build_dual(config).clip.state_dict(), config, GEOMETRY, VIEW)


def test_a_release_is_evaluated_from_the_command_line(
    release: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, other, out = tmp_path / "toy.yaml", tmp_path / "geometry.json", tmp_path / "out"
    task.write_text(json.dumps(TASK.model_dump(mode="json")))
    other.write_text(replace(GEOMETRY, pad_hu=0.0).to_json())
    arguments = ["--model", str(release), "--data", str(toy_folder), "--task", str(task), "--resamples", "20"]
    arguments += ["--pool", "8", "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0
    stored = json.loads((out / "results.json").read_text())
    loaded = encoders.load(str(release))
    assert stored["provenance"]["release_sha256"] == loaded.sha256
    assert "macro" in capsys.readouterr().out
    assert main([*arguments, "--geometry", str(other)]) == 1
    assert "pad_hu: -1024.0 against 0.0" in capsys.readouterr().err
    assert main([*arguments, "--geometry", str(other), "--allow-geometry-mismatch"]) == 0

    shards = ShardSet.open(toy_folder)  # the same through the library, model left in training mode
    model, options = loaded.model.train(), {"resamples": 20, "pools": (8,)}
    again = evaluate(model, loaded.tokenizer, shards, shards.rows("test"), GEOMETRY, VIEW, TASK, **options)
    assert again.macro == stored["macro"]
    assert model.training


def test_several_tasks_at_once_and_files_of_the_published_form(
    release: Path, toy_folder: Path, tmp_path: Path, repo: Path
) -> None:
    import jsonschema
    import pandas as pd

    tasks = []
    for name in ("one", "two"):
        tasks.append(tmp_path / f"{name}.yaml")
        tasks[-1].write_text(json.dumps({**TASK.model_dump(mode="json"), "name": name}))
    out = tmp_path / "out"
    arguments = ["--model", str(release), "--data", str(toy_folder), "--task", *map(str, tasks), "--resamples", "20"]
    assert main([*arguments, "--pool", "8", "--device", "cpu", "--out", str(out), "--cache", str(tmp_path / "c")]) == 0
    assert len(list((tmp_path / "c").iterdir())) == 1  # studies were encoded once
    schema = json.loads((repo / "eval_zero_shot" / "results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in ("one", "two"):
        stored = json.loads((out / name / "results.json").read_text())
        jsonschema.validate(stored, schema)
        table, text = pd.read_parquet(out / name / "scores.parquet"), pd.read_csv(out / name / "scores.csv")
        assert list(table.columns) == list(text.columns)
        assert table["score"].tolist() == text["score"].tolist()
        assert table["label"].isna().equals(text["label"].isna())
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**stored, "macro": 1.5}, schema)
