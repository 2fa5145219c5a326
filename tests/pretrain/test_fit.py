"""The command line of training, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import encoders
from encoders.errors import ReleaseError
from eval_zero_shot.outcome import read_results
from pretrain import fit
from pretrain.config import dump, load_recipe


@pytest.fixture(scope="module")
def scored(make_fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, task_file: Path) -> Any:
    """A run with zero-shot scores every second step, all of them kept, and an average of the weights."""
    runs = make_fit(tmp_path_factory.mktemp("scored"))
    assert runs(
        "run", evaluate__task=str(task_file), evaluate__every_steps=2, evaluate__final=True,
        checkpoint__keep_top=2, checkpoint__every_steps=3, optim__ema_decay=0.5,
    ) == 0  # fmt: skip
    return runs


def test_a_run_leaves_recipe_environment_numbers_checkpoints_results_and_release(scored: Any) -> None:
    folder = scored.folder("run")
    assert {p.name for p in folder.iterdir()} == {
        "recipe.yaml", "environment.json", "files.json", "metrics.csv", "tensorboard", "checkpoints", "results",
        "release", "report.html", "plots",
    }  # fmt: skip
    assert dump(load_recipe(str(folder / "recipe.yaml"))) == (folder / "recipe.yaml").read_text()
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]
    rows = [row.split(",") for row in scored.metrics("run")[1:]]
    assert {int(row[0]) for row in rows} == {1, 2, 4, 6, 8}
    assert {row[1] for row in rows if row[0] == "8"} >= {
        "loss", "loss/sentence", "loss/contrastive", "grad_norm", "lr", "logit_scale", "refused",
        "select/macro_auroc", "select/nodule", "select/effusion",
    }  # fmt: skip
    classified, retrieved = read_results(folder / "results")
    assert (classified.protocol, classified.studies, retrieved.protocol) == ("classification", 4, "retrieval")
    assert not list(folder.rglob(".*"))  # nothing half-written stays


def test_scores_may_be_taken_over_several_crops(scored: Any, task_file: Path) -> None:
    """While training and from the release, whose own view it becomes."""
    assert scored(
        "several", evaluate__task=str(task_file), evaluate__every_steps=4, evaluate__final=True,
        data__eval_view__kind="sliding", data__eval_view__size=[16, 16, 16], data__train_view__size=[16, 16, 16],
        model__image__name="voxvit_tiny.p-8x8x8_i-16x16x16_c-1_l-1",
    ) == 0  # fmt: skip
    folder = scored.folder("several")
    assert (folder / "report.html").is_file()
    loaded = encoders.load(str(folder / "release"))
    assert loaded.view.kind == "sliding"
    assert len(loaded.preprocess.crops(np.zeros((16, 32, 32), np.int16), spacing_mm=(10, 10, 10))) > 1
    with pytest.raises(ReleaseError, match=r"\.crops"):
        loaded.preprocess(np.zeros((16, 32, 32), np.int16))


def test_the_best_checkpoint_is_the_one_with_the_best_zero_shot_score(scored: Any) -> None:
    checkpoints = scored.folder("run") / "checkpoints"
    scores = {int(step): score for step, score in json.loads((checkpoints / "scores.json").read_text()).items()}
    assert set(scores) == {2, 4, 6, 8}
    ranked = sorted(scores, key=lambda step: (scores[step], step), reverse=True)
    assert scored.checkpoint("run", "best").name == f"step-{ranked[0]:08d}"
    assert scored.checkpoint("run", "last").name == "step-00000008"
    kept = {int(p.name.removeprefix("step-")) for p in checkpoints.glob("step-*")}
    assert kept == {*ranked[:2], 8}
    for step in kept:
        model = json.loads((checkpoints / f"step-{step:08d}" / "model.json").read_text())
        assert (model["step"], model["score"]) == (step, scores.get(step))


def test_the_release_is_the_best_checkpoint_and_loads(scored: Any, equal: Any) -> None:
    release = scored.folder("run") / "release"
    assert equal(load_file(release / "open_clip_model.safetensors"), scored.weights("run", "best"))
    loaded = encoders.load(release)
    assert loaded.model.encode_image(torch.zeros(1, 1, 16, 32, 32)).study_BD.shape == (1, 16)


def test_averaged_weights_are_scored_and_released_and_trained_ones_kept_beside(scored: Any) -> None:
    checkpoint = scored.checkpoint("run")
    state = torch.load(checkpoint / "trainer.ckpt", weights_only=True)
    averaged = load_file(checkpoint / "encoders.safetensors")
    assert state["averaged"] == 8
    moved = [k for k, v in averaged.items() if not torch.equal(v, state["trained"][k])]
    assert "visual.trunk.blocks.0.qkv.weight" in moved


@pytest.mark.parametrize("words", [["--help"], ["--print-config", "--config", "ct3d.yaml"]])
def test_a_reader_that_closes_the_pipe_is_no_error(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # `| head` that has already gone
    process = subprocess.run(
        [sys.executable, "-m", "pretrain.fit", *words], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "")


def test_without_a_recipe_there_is_usage_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main([]) == 2
    assert "usage: python -m pretrain.fit" in capsys.readouterr().err


def test_a_printed_recipe_can_be_trained_from(tiny: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert fit.main([*tiny.argv("x", optim__lr=2e-4), "--print-config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_recipe(str(printed)) == load_recipe(str(tiny.recipe), tiny.argv("x", optim__lr=2e-4)[2:])
    assert yaml.safe_load(printed.read_text())["optim"]["lr"] == 2e-4


def test_a_release_rounds_windows_as_its_run_did(tiny: Any) -> None:
    geometry = {"kind": "volume", "spacing_mm": [3.0, 3.0, 3.0], "windows": [[-500, 500]], "levels": 5}
    assert tiny("run", train__steps=3, data__geometry=geometry) == 0
    preprocess = encoders.load(tiny.folder("run") / "release").preprocess
    ramp = np.linspace(-600, 600, 16 * 32 * 32, dtype=np.float32).reshape(16, 32, 32)
    assert preprocess(ramp, (3.0, 3.0, 3.0)).unique().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_the_same_seed_gives_the_same_bits_for_any_number_of_workers(tiny: Any, equal: Any) -> None:
    for name, changes in (("a", {}), ("b", {"data__workers": 2}), ("c", {"seed": 4})):
        torch.manual_seed(ord(name))  # whatever was drawn before a run is not to matter
        assert tiny(name, **changes) == 0
    assert equal(tiny.weights("a"), tiny.weights("b"))
    assert tiny.metrics("a") == tiny.metrics("b")
    assert not equal(tiny.weights("a"), tiny.weights("c"))


def test_a_line_of_progress_where_there_is_no_terminal(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny("a", train__steps=4) == 0
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("starting: ")
    assert lines[0].startswith("step 1/4  loss ")
    assert lines[-1].startswith("step 4/4  loss ")
    assert all(word in lines[-1] for word in ("volumes/s", "data wait", "ETA 0:00"))


def test_a_run_of_the_same_name_is_not_written_over(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.folder("a").mkdir()
    (tiny.folder("a") / "recipe.yaml").write_text("name: old")
    for devices in (1, 2):  # with two, before any rank is started
        assert tiny("a", train__devices=devices) == 1
        assert "a run exists" in capsys.readouterr().err
    assert (tiny.folder("a") / "recipe.yaml").read_text() == "name: old"


def test_start_from_a_release(
    scored: Any, make_fit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretrain import build

    release = scored.folder("run") / "release"
    runs = make_fit(tmp_path)
    started = build.build_model(load_recipe(str(runs.recipe), [f"model.init={release}"])).eval()
    released = encoders.load(release).model
    images = torch.randn(2, 1, 16, 32, 32)
    assert torch.equal(started.encode_image(images).study_BD, released.encode_image(images).study_BD)

    frozen = {"image": 0.0, "text": 0.0, "heads": 1.0}
    assert runs("frozen", model__init=str(release), optim__lr_multipliers=frozen, train__steps=3) == 0
    before, after = load_file(release / "open_clip_model.safetensors"), runs.weights("frozen")
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"visual.head.proj.weight", "text.text_projection", "logit_scale"}

    assert runs("other", model__init=str(release), model__embed_dim=8) == 1
    said = capsys.readouterr().err
    assert "model.init: the release cannot start this model" in said
    assert "size mismatch" in said


def test_a_final_score_needs_no_task_and_a_task_no_select_split(tiny: Any, task_file: Path) -> None:
    splits = {"train": "train", "select": "nobody", "test": "nobody either"}
    assert tiny("a", evaluate__task=str(task_file), evaluate__final=True, data__splits=splits, train__steps=3) == 0
    assert not (tiny.folder("a") / "results").exists()
    assert tiny.checkpoint("a", "best").name == "step-00000003"


def test_the_last_step_is_in_the_numbers_without_a_score(tiny: Any) -> None:
    assert tiny("run", train__steps=3) == 0
    assert {row.split(",")[0] for row in tiny.metrics("run")[1:]} == {"1", "3"}


def test_a_run_that_cannot_be_scored_says_so_at_its_start(
    tiny: Any, task_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"evaluate__task": str(task_file), "train__steps": 3}
    assert tiny("none", data__splits={"select": "no", "test": "none"}, **task) == 0
    assert "scored at no time" in capsys.readouterr().err
    assert tiny("last", data__splits={"select": "no"}, **task) == 0
    assert "the last one is released" in capsys.readouterr().err


def test_what_cannot_run_here_leaves_no_folder(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A GPU where there is none, and a recipe for the other kind of scans."""
    if not torch.cuda.is_available():
        assert tiny("gpu", train__accelerator="gpu") == 1
        assert "torch sees no GPU" in capsys.readouterr().err and not tiny.folder("gpu").exists()
    shards = yaml.safe_load(tiny.recipe.read_text())["data"]["source"]["path"]
    planar = fit.main([
        "--config", "xray2d.yaml", "--data.source.path", shards,
        "--evaluate.task", "null", "--smoke", "--output.root", str(tiny.root), "--output.run", "planar",
    ])  # fmt: skip
    assert planar == 1
    assert "the shard set holds volumes" in capsys.readouterr().err and not tiny.folder("planar").exists()


def test_a_smoke_run_makes_room_for_the_run_of_its_name(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    argv = tiny.argv("again", train__steps=3)
    assert fit.main([*argv, "--smoke"]) == 0
    assert (tiny.folder("again") / "smoke").is_file()
    assert fit.main(argv) == 0
    assert "holds a smoke run: it is replaced" in capsys.readouterr().err
    assert not (tiny.folder("again") / "smoke").exists()
    assert fit.main(argv) == 1
    assert "a run exists at" in capsys.readouterr().err
    assert tiny.resume("again") == 0
    assert "is finished (3 steps)" in capsys.readouterr().out


def test_a_chunk_that_cuts_nothing_is_said(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny("run", train__steps=1, optim__warmup_steps=0, train__chunk=64) == 0
    assert "no batch is cut" in capsys.readouterr().err
