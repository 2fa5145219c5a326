from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_shards.build import main
from data_shards.build_folder import work_folder
from data_shards.shard_set import ShardSet

REPO = Path(__file__).resolve().parents[2]
COLUMNS = ("id", "image", "patient", "split", "report")


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLIP_SALT", "test")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven studies, the fifth unreadable. Do not change it."""
    return write_table(tmp_path_factory.mktemp("source"), 7)


def write_table(folder: Path, studies: int, shape: tuple[int, int, int] = (8, 7, 6)) -> Path:
    for i in range(studies):
        array = np.random.default_rng(i).integers(-1000, 1000, shape).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{i}.nii")
    if studies > 4:
        (folder / "4.nii").write_bytes((folder / "4.nii").read_bytes()[:-100])
    rows = [[f"s{i}", f"{i}.nii", f"p{i // 2}", ("train", "val")[i // 4], f"Nodule {i}."] for i in range(studies)]
    return rewrite(folder / "reads.csv", rows)


def rewrite(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    return ["--source", str(source), "--out", str(out), "--max-samples", "2", "--max-rejects", "1", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOXCLIP_SALT", "test")
        assert main(arguments(source, out)) == 0
    return contents(out)


def killed(out: Path, source: Path, count: int, first: int, step: int, *more: str) -> Iterator[tuple[int, Path]]:
    """Each moment at which a build was killed, and what the builds after it made in the end."""
    words = [str(count), str(first), str(step), *arguments(source, out, *more)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.data_shards.killed", *words],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in (line.split() for line in done.stdout.splitlines() if line.startswith("moment ")):
        moment, code, left = int(line[1]), int(line[2]), line[3]
        assert (code, left) == (0, "False"), f"killed before step {moment}: exit code {code}, work folder left: {left}"
        yield moment, out.with_name(f"{out.name}-{moment}")


def test_killed_and_started_again(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    seen = 0
    for moment, made in killed(tmp_path / "out", source, 4, 5, 11):
        assert contents(made) == unbroken, f"killed before step {moment}"
        seen += 1
    assert seen >= 3
    assert {"rejected.csv", "manifest.json", "index.parquet", "shard-000003.tar"} <= unbroken.keys()


@pytest.mark.full
def test_killed_before_every_step(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    moments = []
    for moment, made in killed(tmp_path / "out", source, 1000, 1, 1):
        assert contents(made) == unbroken, f"killed before step {moment}"
        moments.append(moment)
    assert moments == list(range(1, len(moments) + 1)) and len(moments) > 30, "to the very last step"


@pytest.mark.full
def test_killed_with_workers(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for moment, made in killed(out, source, 6, 3, 6, "--workers", "2"):
        assert contents(made) == unbroken, f"killed before step {moment}"
        for pid in Path(f"{out}.children").read_text().split():
            _gone(int(pid))


@pytest.mark.full
def test_killed_at_any_time(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    clock = random.Random(0)
    words = [
        sys.executable,
        "-m",
        "data_shards.build",
        *arguments(source, tmp_path / "out", "--workers", "2", "--resume"),
    ]
    code, kills = None, 0
    while code is None:
        run = subprocess.Popen(words, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            code = run.wait(timeout=0.3 + 0.15 * kills + clock.uniform(0, 0.15))
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            kills += 1
    assert code == 0 and kills >= 2 and contents(tmp_path / "out") == unbroken


@pytest.mark.full
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    table = write_table(tmp_path, 2, (400, 400, 400))  # seconds of compression
    words = [sys.executable, "-m", "data_shards.build", *arguments(table, tmp_path / "out", "--workers", "2")]
    run = subprocess.Popen(words, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while len(workers := children.read_text().split()) < 3 or not _busy(workers):  # with the resource tracker
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    for pid in workers:
        _gone(int(pid))


def _busy(pids: list[str]) -> bool:
    """Whether a process holds a volume in memory."""
    sizes = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") for pid in pids]
    return max(sizes) > 150e6


def _gone(pid: int) -> None:
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("a worker outlived its parent")


def interrupted(source: Path, out: Path, *more: str) -> None:
    """A build that was stopped after its shards: one study too many cannot be used."""
    assert main([*arguments(source, out, *more), "--max-rejects", "0"]) == 1
    assert work_folder(out).is_dir()


def test_another_build_is_named_and_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    interrupted(source, out)
    capsys.readouterr()
    assert main(arguments(source, out, "--licence", "CC0-1.0", "--max-samples", "3")) == 1
    told = capsys.readouterr().err
    assert "--licence, --max-samples differ" in told and ".out.building" in told and "remove the folder" in told
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOXCLIP_SALT", "another")
        assert main(arguments(source, out)) == 1
    assert "the salt differ" in capsys.readouterr().err
    about = work_folder(out) / "about.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"the program's code": "older"}))
    assert main(arguments(source, out)) == 1
    assert "the program's code differ" in capsys.readouterr().err


def test_more_rejects_are_allowed_without_reading_again(
    source: Path, unbroken: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupted(source, out)
    told = capsys.readouterr().err
    assert "all 4 shards are kept in .out.building" in told and "--max-rejects 1" in told
    assert [path.name for path in out.iterdir()] == ["rejected.csv"]
    assert main(arguments(source, out, "--resume")) == 0
    assert "4 of 4 shards (7 studies) are finished" in capsys.readouterr().out
    assert contents(out) == unbroken and not work_folder(out).exists()


def test_a_repaired_study_costs_its_shard_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_table(tmp_path, 7), tmp_path / "out"
    interrupted(source, out)
    array = np.random.default_rng(4).integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "4.nii")
    assert main(arguments(source, out)) == 0
    assert "3 of 4 shards (5 studies) are finished" in capsys.readouterr().out
    assert main(arguments(source, tmp_path / "fresh")) == 0
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_changed_table_makes_only_what_changed(tmp_path: Path) -> None:
    source, out = write_table(tmp_path, 7), tmp_path / "out"
    interrupted(source, out)
    text = source.read_text().replace("Nodule 6.", "Nodule six.")
    source.write_text(text)
    assert main(arguments(source, out)) == 0
    assert main(arguments(source, tmp_path / "fresh")) == 0
    assert contents(out) == contents(tmp_path / "fresh")
    assert ShardSet.open(out).json(5)["texts"]["report"] == "Nodule six."


def test_checks_across_studies_survive_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A patient whose split changed after its first study was written: the table alone is right, the set is not."""
    out = tmp_path / "out"
    source = write_table(tmp_path, 7)
    interrupted(source, out)
    capsys.readouterr()
    journal = work_folder(out) / "journal.jsonl"
    from data_shards.journal import Journal

    kept = Journal(journal)
    kept.entries[0]["rows"][0]["patient"] = kept.entries[3]["rows"][0]["patient"]
    journal.unlink()
    forged = Journal(journal)
    for entry in kept.entries:
        forged.append(entry)
    assert main(arguments(source, out)) == 1
    assert "is in split 'train' already, and now in 'val'" in capsys.readouterr().err


def test_a_full_disk_is_told_and_gone_on_from(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    """Files of more than 3 kB cannot be written."""
    out = tmp_path / "out"
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
    limited += "from data_shards.build import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", limited, *arguments(source, out)]
    full = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False)
    assert full.returncode == 1 and not out.exists()
    assert "reading or writing failed: File too large" in full.stderr and str(tmp_path) not in full.stderr
    assert main(arguments(source, out)) == 0
    assert contents(out) == unbroken


def test_two_builds_cannot_share_an_output(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    interrupted(source, out)
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); "
        "time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(work_folder(out) / "lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        capsys.readouterr()
        assert main(arguments(source, out)) == 1
        assert "another process is building this output now" in capsys.readouterr().err
    finally:
        other.kill()
        other.wait()
    assert main(arguments(source, out)) == 0, "a lock ends with its process"


def test_a_finished_build(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(arguments(source, out, "--resume")) == 0
    before = contents(out)
    assert main(arguments(source, out, "--resume")) == 0
    assert "built already" in capsys.readouterr().out
    assert main(arguments(source, out)) == 1
    assert main(arguments(source, out, "--resume", "--licence", "CC0-1.0")) == 1
    assert capsys.readouterr().err.count("already holds files") == 2
    assert contents(out) == before
