"""No more workers, and no more batches of theirs, than there is room for."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards import DataError, room
from data_shards.room import Room, Workers, fitting
from data_shards.shard_set import ShardSet
from tests.data_shards.test_stream import stream

GB = 10**9
Usage = namedtuple("Usage", "total used free")


def test_workers_that_fit() -> None:
    large = Room(64 * GB, "/dev/shm")
    assert fitting(12, GB, 1, large) == Workers(12, 1)
    assert fitting(12, 65 * GB // 10, 1, large) == Workers(7, 1), "seven make one each, two are in use"
    assert fitting(12, GB, 8, large) == Workers(6, 1), "ranks share it"
    assert fitting(4, 10**6, 1, large) == Workers(4, 4)
    assert fitting(0, 65 * GB, 1, large) == Workers(0, 1)
    assert fitting(12, 65 * GB, 1, None) == Workers(12, 1), "nobody knows"


@pytest.mark.parametrize(("batch", "wanted"), [(10_000_000, Workers(2, 2)), (20_000_000, Workers(1, 1))])
def test_what_workers_hold_ready_counts_as_well(batch: int, wanted: Workers) -> None:
    docker = 64 << 20
    found = fitting(2, batch, 1, Room(docker, "/dev/shm"))
    assert found == wanted and (found.number * found.ahead + 2) * batch <= docker


def test_no_room_for_one_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"take 65 GB, and /dev/shm has 64 GB free; a worker needs 3 batches(.|\n)*--data.workers 0.*--shm-size",
    ):
        fitting(12, 65 * GB, 1, Room(64 * GB, "/dev/shm"))
    with pytest.raises(DataError, match="memory has 64 MB free, half of it for pinned copies, for 2 ranks") as short:
        fitting(1, 30_000_000, 2, Room(64_000_000, "memory", 2))
    assert "--shm-size" not in str(short.value)
    assert fitting(1, 5_000_000, 2, Room(64_000_000, "memory", 2)) == Workers(1, 1)


def test_room_is_the_least_of_shared_memory_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(room, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(room, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(room, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(64 * GB, 0, 64 * GB))
    assert Room.measured(pinned=True) == Room(64 * GB, str(tmp_path))
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   100000000 kB\n")
    assert Room.measured(pinned=False) == Room(64 * GB, str(tmp_path))
    assert Room.measured(pinned=True) == Room(102_400_000_000, "memory", 2), "a pinned batch is there twice"
    job = tmp_path / "groups" / "slurm" / "job_1" / "step_0"
    job.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("4:memory:/else\n0::/slurm/job_1/step_0\n")
    for folder, most in ((job, "max"), (job.parent, str(32 * GB))):
        (folder / "memory.max").write_text(most + "\n")
        (folder / "memory.current").write_text(f"{20 * GB}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {4 * GB}\n")
    assert Room.measured(pinned=True) == Room(16 * GB, "memory", 2), "a job's limit counts, its file cache does not"
    monkeypatch.setattr(room, "SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr(room, "MEMORY", tmp_path / "none")
    monkeypatch.setattr(room, "OWN_GROUP", tmp_path / "none")
    assert Room.measured(pinned=True) is None


def test_a_stream_starts_as_many_as_fit_and_says_so(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handed: list[Workers] = []

    def load(dataset: Any, steps: range, workers: Workers, pin_memory: bool) -> Any:
        handed.append(workers)
        return (dataset[step] for step in steps)

    whole = list(stream(shards))
    batch = whole[0].images_BCDHW.numel() * 4
    monkeypatch.setattr("data_shards.stream.load", load)
    monkeypatch.setattr(Room, "measured", classmethod(lambda cls, pinned: Room(5 * batch, "/dev/shm")))
    got = list(stream(shards, workers=6))
    assert handed == [Workers(3, 1)] and all(
        torch.equal(a.images(), b.images()) for a, b in zip(whole, got, strict=True)
    )
    assert "3 instead of 6 workers (data.workers)" in capsys.readouterr().err
    list(stream(shards, workers=6, steps=1))
    assert handed[1:] == [Workers(1, 3)] and not capsys.readouterr().err, "one step needs one worker"
