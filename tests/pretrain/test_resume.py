"""Stopping and going on: bit for bit the run that was never stopped, with dropout, jitter and shuffled sentences on."""

from __future__ import annotations

import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pretrain import fit

STEPS = 14  # of 16 studies in batches of 4: the third epoch is cut short


@pytest.fixture
def runs(make_fit: Callable[..., Any], tmp_path: Path, task_file: Path, plugins: None) -> Any:
    """Scores, averaged weights, accumulated gradients, and the objective that can stop a run."""
    return make_fit(
        tmp_path,
        objectives=[{"name": "trouble:Trouble"}, {"name": "sentence"}, {"name": "contrastive"}],
        optim={"ema_decay": 0.7, "accumulate": 2},
        train={"steps": STEPS},
        evaluate={"task": str(task_file), "every_steps": 5},
    )


def test_a_stopped_run_goes_on_as_if_never_stopped(
    runs: Any, trouble: Callable[..., None], equal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs("whole") == 0
    for number, workers in ((signal.SIGTERM, 0), (signal.SIGINT, 2)):
        before, name = signal.getsignal(number), number.name
        trouble(signal_at=13, signal=int(number))
        assert runs(name, data__workers=workers) == 143
        said = f"stopped after step 7; go on with: python -m pretrain.fit --resume {runs.folder(name)}"
        assert said in capsys.readouterr().out
        assert runs.checkpoint(name).name == "step-00000007"  # call 13 is half of this step: it is finished first
        assert not (runs.folder(name) / "release").exists()
        assert signal.getsignal(number) == before

        trouble()
        assert runs.resume(name) == 0
        assert equal(runs.weights(name), runs.weights("whole"))
        assert runs.metrics(name) == runs.metrics("whole")
        scores = [runs.folder(n) / "checkpoints" / "scores.json" for n in (name, "whole")]
        assert scores[0].read_text() == scores[1].read_text()


def test_two_optimisers_and_measured_scales_go_on_too(runs: Any, trouble: Callable[..., None], equal: Any) -> None:
    changes = {
        "optim__muon": 2.0,
        "data__units__drop_words": 0.3,
        "model__image__name": "voxvit_tiny.p-8x16x16_i-16x32x32_c-1_s-extremes_l-1",
    }
    assert runs("whole", **changes) == 0
    trouble(signal_at=13, signal=int(signal.SIGTERM))
    assert runs("stopped", data__workers=2, **changes) == 143
    trouble()
    assert runs.resume("stopped") == 0
    assert equal(runs.weights("stopped"), runs.weights("whole"))
    assert bool(runs.weights("whole")["visual.trunk.patch_embed.1.known"])
    assert runs.metrics("stopped") == runs.metrics("whole")


def test_what_a_killed_run_leaves_is_put_right(runs: Any, equal: Any) -> None:
    """Numbers of later steps, one cut short, a link that points nowhere, a folder half-written."""
    assert runs("whole") == runs("killed", checkpoint__keep_top=9) == 0
    folder = runs.folder("killed")
    checkpoints = folder / "checkpoints"
    assert {p.name for p in checkpoints.glob("step-*")} == {f"step-{s:08d}" for s in (5, 10, 14)}
    shutil.rmtree(folder / "release")
    shutil.rmtree(checkpoints / "step-00000014")
    assert (checkpoints / "last").is_symlink() and not (checkpoints / "last").exists()
    half = checkpoints / ".writing-step-00000014"
    half.mkdir()
    (half / "encoders.safetensors").write_bytes(b"half")
    with (folder / "metrics.csv").open("a") as file:
        file.write("15,loss,1\n1")

    assert runs.resume("killed") == 0
    assert equal(runs.weights("killed"), runs.weights("whole"))
    assert runs.metrics("killed") == runs.metrics("whole")
    assert not list(checkpoints.glob(".writing-*"))


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    tiny: Any, equal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny("a") == tiny("b") == 0
    shutil.rmtree(tiny.folder("b") / "checkpoints")
    assert tiny.resume("b") == 0
    assert "has no checkpoint yet" in capsys.readouterr().out
    assert equal(tiny.weights("a"), tiny.weights("b"))
    assert tiny.metrics("a") == tiny.metrics("b")


def test_a_finished_run_is_released_again(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny("a", train__steps=3) == 0
    shutil.rmtree(tiny.folder("a") / "release")
    assert tiny.resume("a") == 0
    assert (tiny.folder("a") / "release" / "release.json").is_file()
    assert len(list((tiny.folder("a") / "checkpoints").glob("step-*"))) == 1


@pytest.fixture(scope="module")
def stopped(make_fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with half its steps to go."""
    root = tmp_path_factory.mktemp("stopped")
    runs = make_fit(root, objectives=[{"name": "trouble:Trouble"}, {"name": "sentence"}], train={"steps": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).with_name("plugins")))
        patch.setenv("TROUBLE", '{"signal_at": 2}')
        assert runs("run") == 143
    return runs


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 4, "seed 3 -> 4"),
        ("train.batch_size", 8, "train.batch_size 4 -> 8"),
        ("optim.lr", 0.1, "optim.lr 0.001 -> 0.1"),
        ("objectives.1.weight", 2.0, "objectives.1.weight 1.0 -> 2.0"),
    ],
)
def test_resume_with_an_edited_recipe_is_refused(
    stopped: Any, plugins: None, tmp_path: Path, key: str, value: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _resume_edited(stopped, tmp_path, key, value) == 1
    message = capsys.readouterr().err
    assert said in message
    assert "why:" in message and "--model.init" in message


def test_resume_may_change_what_the_weights_do_not_depend_on(stopped: Any, plugins: None, tmp_path: Path) -> None:
    assert _resume_edited(stopped, tmp_path, "data.workers", 1) == 0


def test_resume_on_other_shards_is_refused(
    stopped: Any, plugins: None, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"made up"', '"made otherwise"') + "\n")
    assert _resume_edited(stopped, tmp_path, "data.source.path", str(other)) == 1
    assert "manifest" in capsys.readouterr().err


def test_resume_needs_a_run_and_takes_no_other_option(
    tmp_path: Path, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit.main(["--resume", str(tmp_path)]) == 1
    assert "no run there (recipe.yaml is missing)" in capsys.readouterr().err
    assert fit.main(["--resume", str(tmp_path), "--optim.lr", "1e-4"]) == 1
    assert "takes no other option" in capsys.readouterr().err


def _resume_edited(runs: Any, tmp_path: Path, key: str, value: Any) -> int:
    folder = tmp_path / "copy"
    shutil.copytree(runs.folder("run"), folder, symlinks=True)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    inside: Any = recipe
    *way, last = key.split(".")
    for part in way:
        inside = inside[int(part) if part.isdigit() else part]
    inside[last] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return fit.main(["--resume", str(folder)])


def test_sigusr1_under_slurm_requeues_the_job(
    troubled: Any, trouble: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    for name, value in {  # what srun sets for the only task of a job
        "JOB_ID": "4711", "JOB_NAME": "voxclip", "NTASKS": "1", "NPROCS": "1", "PROCID": "0", "LOCALID": "0",
        "NODEID": "0", "NNODES": "1", "NODELIST": "n[001-002]", "STEP_ID": "0", "STEP_NUM_TASKS": "1",
        "NTASKS_PER_NODE": "1", "TASKS_PER_NODE": "1", "CPUS_PER_TASK": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    trouble(signal_at=3, signal=int(signal.SIGUSR1))
    runs = troubled
    assert runs("run") == 143
    assert (tmp_path / "said").read_text() == "requeue 4711\n"
    assert runs.checkpoint("run").name == "step-00000003"
    assert torch.load(runs.checkpoint("run") / "trainer.ckpt", weights_only=True)["batches_done"] == 3

    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "47")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert runs("array") == 143
    assert (tmp_path / "said").read_text() == "requeue 4711\nrequeue 47_2\n"
