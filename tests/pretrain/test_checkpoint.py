"""Checkpoints are whole or not there: killed while writing, out of room, tampered with."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain import checkpoint
from pretrain.checkpoint import CheckpointError


def write(root: Path, step: int, size: int = 10, value: float = 0.0) -> Path:
    weights = {"w": torch.full((size,), value)}
    state = {"batches_done": step, "m": weights["w"]}
    return checkpoint.write(root, step, weights, {}, {"step": step}, "name: x\n", state)


def is_whole(folder: Path) -> bool:
    step = checkpoint.read_trainer(folder)["batches_done"]
    return folder.name == f"step-{step:08d}" and load_file(folder / "encoders.safetensors")["w"].isfinite().all()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 7, value=0.5)
    state = checkpoint.read_trainer(folder)
    assert (state["batches_done"], state["m"][0], state["format"]) == (7, 0.5, checkpoint.FORMAT)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "encoders.safetensors", "model.json", "recipe.yaml", "step-00000007", "trainer.ckpt",
    ]  # fmt: skip
    write(tmp_path, 7, value=0.25)  # the same step once more takes its place
    assert checkpoint.read_trainer(folder)["m"][0] == 0.25
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]


def test_pruning_keeps_what_is_named_or_linked_and_clears_what_was_left(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step)
    checkpoint.link(tmp_path, "last", tmp_path / "step-00000005")
    checkpoint.link(tmp_path, "best", tmp_path / "step-00000004")
    checkpoint.link(tmp_path, "best", tmp_path / "step-00000002")
    (tmp_path / ".writing-step-00000006").mkdir()
    checkpoint.prune(tmp_path, {"step-00000003"})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best", "last", "step-00000002", "step-00000003", "step-00000005",
    ]  # fmt: skip


def test_a_process_killed_while_writing_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    """SIGKILL at random moments of a process that does nothing but write and prune."""
    rng, killed_aside = random.Random(0), 0
    checkpoint.link(tmp_path, "last", write(tmp_path, 0))
    for turn in range(1, 11):
        child = os.fork()
        if child == 0:
            try:
                for step in range(1000 * turn, 1000 * turn + 999):
                    checkpoint.link(tmp_path, "last", write(tmp_path, step, 200_000, float(step)))
                    checkpoint.prune(tmp_path, set())
            finally:
                os._exit(1)
        while int((tmp_path / "last").readlink().name.removeprefix("step-")) < 1000 * turn:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        killed_aside += any(p.name.startswith(checkpoint.ASIDE) for p in tmp_path.iterdir())
        assert all(is_whole(folder) for folder in tmp_path.glob("step-*"))
        assert is_whole((tmp_path / "last").resolve())
    assert killed_aside, "no process was killed while it wrote"


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("how", ["torch", "pickle", "cut short", "another format"])
def test_a_state_that_is_damaged_or_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, 1) / "trainer.ckpt"
    if how == "torch":
        torch.save({"format": checkpoint.FORMAT, "x": Evil()}, file)
    elif how == "pickle":
        file.write_bytes(pickle.dumps(Evil()))
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:-200])
    else:
        torch.save({"format": 99}, file)
    with pytest.raises(CheckpointError, match="another format" if how == "another format" else "cannot be read"):
        checkpoint.read_trainer(file.parent)
    assert not (tmp_path / "pwned").exists()


def test_a_run_with_a_state_that_would_run_code_is_not_resumed(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tiny("run", train__steps=3) == 0
    torch.save({"format": checkpoint.FORMAT, "x": Evil()}, tiny.checkpoint("run") / "trainer.ckpt")
    assert tiny.resume("run") == 1
    assert "it holds pickled objects, which could run code" in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts (or enlarges) a disk of some MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def size(mebibytes: int) -> Path:
        how = "remount," if disk.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={mebibytes}m", "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip(f"no small disk can be mounted (needs root): {done.stderr.strip() if done else 'no mount'}")
        return disk

    yield size
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_the_checkpoint_that_was_being_written_and_no_other(
    make_fit: Any, tmp_path: Path, small_disk: Callable[[int], Path], equal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = make_fit(tmp_path)
    assert runs("whole") == 0
    one = sum(f.stat().st_size for f in runs.checkpoint("whole").iterdir()) / 2**20
    capsys.readouterr()

    runs = make_fit(small_disk(int(one * 1.5)))  # room for one checkpoint, not for a second beside it
    assert runs("run", checkpoint__every_steps=3) == 1
    said = capsys.readouterr().err
    checkpoints = runs.folder("run") / "checkpoints"
    assert said.count("WARNING: checkpoint of step 6 could not be written: No space left on device") == 1
    assert "training goes on" in said
    assert said.count("error: checkpoint of step 8 could not be written: No space left on device") == 1
    assert "fix: free space under the run folder; earlier checkpoints there are whole" in said
    assert {p.name for p in checkpoints.iterdir()} == {"step-00000003", "last", "best", "scores.json"}
    assert checkpoint.read_trainer(runs.checkpoint("run"))["batches_done"] == 3

    small_disk(int(one * 5))
    assert runs.resume("run") == 0
    whole = load_file(tmp_path / "whole" / "checkpoints" / "last" / "encoders.safetensors")
    assert equal(runs.weights("run"), whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_a_disk_that_is_full_for_a_while_costs_no_number(
    make_fit: Any, small_disk: Callable[[int], Path], plugins: None, trouble: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    disk = small_disk(200)
    runs = make_fit(disk, objectives=[{"name": "trouble:Trouble"}, {"name": "sentence"}])
    trouble(logs=500)  # more than fits into the block that the file has already
    assert runs("whole", train__steps=20) == 0
    trouble(logs=500, disk=str(disk), fill_at=8, free_at=15)
    assert runs("run", train__steps=20, checkpoint__every_steps=9) == 0
    said = capsys.readouterr().err
    assert "WARNING: metrics.csv could not be written (No space left on device)" in said
    assert "WARNING: checkpoint of step 9" in said
    assert runs.metrics("run") == runs.metrics("whole")
