"""Sweeps: what names a run, what is repeated and what is not, stopping and going on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arms import Arm, Sweep
from benchmarks.budget import step_budget
from benchmarks.comparisons import SWEEPS
from benchmarks.sweep import REPO, Job, Runner, at_steps_of, code_hash, differences_of, main, make_job, validation_score
from pretrain.config import load_recipe
from pretrain.errors import ConfigError

SWEEP = SWEEPS["infonce_vs_sentence"]


def name(
    arm: str = "sentence", seed: int = 0, rate: float | None = None, extra: tuple[str, ...] = (), code: str = "c"
) -> str:
    return make_job(SWEEP, arm, seed, rate, extra, True, Path("out"), code).name


def test_a_run_is_named_after_what_determines_it() -> None:
    assert name() == name()
    others = [name("infonce"), name(seed=1), name(rate=5e-4), name(extra=("train.batch_size=4",)), name(code="d")]
    assert len({name(), *others}) == 6
    assert name("infonce", 3, 5e-4).startswith("infonce-lr0.0005-s3-")
    assert make_job(SWEEP, "infonce", 0, None, (), True, Path("out"), "c", 7).name.startswith("infonce-7-s0-")


@pytest.mark.parametrize("sweep", sorted(SWEEPS))
def test_every_arm_is_a_recipe(sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shards of benchmarks.real_data, real_images and real_organs are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").symlink_to(REPO / "benchmarks")
    for folder in ("ct", "images/xray", "images/pneumonia", "images/slices", "images/patches", "organs"):
        (tmp_path / "shards" / folder).mkdir(parents=True)
        (tmp_path / "shards" / folder / "manifest.json").write_text("{}")
    found = SWEEPS[sweep]
    assert found.arms and all({a, b} <= set(found.arms) for a, b in found.differences)
    for arm in found.arms:
        make_job(found, arm, 0, 1e-3, (), False, Path("out"), "c", 10)
    if not found.systems:
        return
    sources = {read_from(load_recipe(j.config, j.overrides).data.source) for j in jobs_of(found)}
    batches = {load_recipe(j.config, j.overrides).train.batch_size for j in jobs_of(found)}
    assert len(sources) == len(batches) == 1, "systems learn from the same studies, as many at a time"


def read_from(source: Any) -> str:
    """What a source reads; how parts are mixed is a system's own."""
    return str(source) if source.kind != "mixture" else str([part.path for part in source.sources])


def jobs_of(sweep: Sweep) -> list[Job]:
    return [make_job(sweep, arm, 0, None, (), False, Path("out"), "c", 10) for arm in sweep.arms]


def test_a_budget_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"sentence": [1.0, 9.0, 2.0], "infonce": [0.5, 0.5, 0.4]}
    times = {arm: iter(each) for arm, each in taken.items()}
    monkeypatch.setattr("benchmarks.budget._timed", lambda job, folder: next(times[job.arm]))
    jobs = {arm: make_job(SWEEP, arm, 0, None, (), False, tmp_path, "c") for arm in SWEEP.arms}
    expected = {"sentence": 120, "infonce": 480}
    assert step_budget(jobs, 240.0, tmp_path, "c") == expected
    assert step_budget(jobs, 240.0, tmp_path, "c") == expected, "the medians are on the disk"
    with pytest.raises(StopIteration):
        step_budget(jobs, 240.0, tmp_path, "other code")


def test_some_arms_bring_what_they_are_ablations_of() -> None:
    arms = {"a": Arm("ct3d.yaml"), "b": Arm("merlin.yaml"), "c": Arm("ct3d.yaml", like="a")}
    found = Sweep(arms, (("a", "b"), ("a", "c"))).only(["c"])
    assert list(found.arms) == ["a", "c"] and found.differences == (("a", "c"),)


def test_differences_at_equal_steps_stand_beside_those_of_the_budget() -> None:
    sweep = Sweep({"ours": Arm("ct3d.yaml"), "theirs": Arm("merlin.yaml")}, (("ours", "theirs"),))
    again = at_steps_of("ours", "theirs")
    assert differences_of(sweep, ["ours"]) == []
    assert differences_of(sweep, ["ours", "theirs"]) == [("ours", "theirs")]
    assert differences_of(sweep, ["ours", "theirs", again]) == [("ours", "theirs"), (again, "theirs")]


def test_a_run_that_two_arms_need_runs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job("ours", 0, None, "no_such.yaml", (), True, tmp_path, "ours-7-s0")
    assert Runner(2, code_hash()).run([job, job]) == [job]  # it fails, once
    assert capsys.readouterr().out.count("starts: ours-7-s0") == 1


def test_no_rate_is_chosen_without_scores(tmp_path: Path) -> None:
    job = make_job(SWEEP, "infonce", 0, 1e-3, (), True, tmp_path, "c")
    with pytest.raises(ConfigError, match="no checkpoints/scores"):
        validation_score(job)
    (job.folder / "checkpoints").mkdir(parents=True)
    (job.folder / "checkpoints" / "scores.json").write_text('{"10": 0.5, "20": 0.7}')
    assert validation_score(job) == 0.7


def test_arms_differ_in_the_objective_alone() -> None:
    jobs = [make_job(SWEEP, arm, 2, None, (), False, Path("out"), "c") for arm in ("sentence", "infonce")]
    ours, plain = (load_recipe(job.config, job.overrides).model_dump() for job in jobs)
    assert [(o["name"], o["weight"]) for o in plain["objectives"]] == [("contrastive", 1.0)]
    assert ours["seed"] == plain["seed"] == 2
    for recipe in (ours, plain):
        recipe.pop("objectives")
        recipe["data"]["units"].pop("sentences")
    assert ours == plain


def test_a_wrong_override_is_told_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infonce_vs_sentence", "--out", str(tmp_path), "--optim.lrr", "1"]) == 1
    assert "did you mean optim.lr?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError):
        name(extra=("train.steps=0",))


def test_comments_do_not_change_the_code_and_constants_do(tmp_path: Path) -> None:
    for package in ("data_shards", "encoders", "pretrain", "eval_zero_shot"):
        (tmp_path / package).mkdir()
    module, data = tmp_path / "pretrain" / "a.py", tmp_path / "eval_zero_shot" / "task.yaml"
    module.write_text('"""One."""\n\n\ndef f():\n    """Two."""\n    return 1\n')
    data.write_text("a: 1\n")
    before = code_hash(tmp_path)
    module.write_text('"""Other words."""\n\ndef f():\n    return 1  # why\n')
    assert code_hash(tmp_path) == before
    module.write_text("def f():\n    return 2\n")
    changed = code_hash(tmp_path)
    data.write_text("a: 2\n")
    assert len({before, changed, code_hash(tmp_path)}) == 3


@pytest.mark.full
def test_a_sweep_is_stopped_goes_on_and_repeats_nothing(tmp_path: Path, repo: Path) -> None:
    out = tmp_path / "out"
    words = [
        "infonce_vs_sentence",
        "--out",
        str(out),
        "--seeds",
        "1",
        "--parallel",
        "2",
        "--smoke",
        "--data.cache",
        str(tmp_path / "cache"),
    ]
    command = [sys.executable, "-m", "benchmarks.sweep", *words]
    with subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout is not None
        next(line for line in sweep.stdout if line.startswith("starts:"))
        sweep.send_signal(signal.SIGTERM)
        assert "the same command goes on" in sweep.communicate(timeout=300)[0]
    assert sweep.returncode == 143
    assert not (out / "summary.json").exists()

    assert main(words) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {arm: len(found["runs"]) for arm, found in summary["arms"].items()} == {"sentence": 1, "infonce": 1}
    assert all(found["step_seconds"] > 0 for found in summary["arms"].values())

    written = {file: file.stat().st_mtime_ns for file in out.glob("*/results/results.json")}
    assert len(written) == 2
    interrupted = sorted(written)[0]
    shutil.rmtree(interrupted.parent)  # as if it had been killed before its last step
    assert main(words) == 0
    after = {file: file.stat().st_mtime_ns for file in out.glob("*/results/results.json")}
    assert after.pop(interrupted) > written.pop(interrupted)
    assert after == written
    assert json.loads((out / "summary.json").read_text())["arms"] == summary["arms"]
