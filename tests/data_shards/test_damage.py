"""Every way in which a shard can go bad, done to real bytes on disk: found, named, and nothing partial handed out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.check import main
from data_shards.errors import DamagedError, DataError
from data_shards.shard_set import ShardSet, ShardWriter
from tests.data_shards.test_stream import stream

SHARD = "shard-000001.tar"  # rows 5 to 9
ALL = [5, 6, 7, 8, 9]


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shard_folder, tmp_path / "copy"))


def _place(folder: Path, row: int, member: int) -> tuple[int, int]:
    """Offset and bytes of a member's payload."""
    place = ShardSet.open(folder).index["members"][row].as_py()[member]
    return place["offset"], place["bytes"]


def _cut(folder: Path, at: int) -> None:
    data = (folder / SHARD).read_bytes()
    assert 0 < at < len(data)
    (folder / SHARD).write_bytes(data[:at])


def _flip(folder: Path, at: int) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[at] ^= 1
    (folder / SHARD).write_bytes(data)


def boundary(folder: Path) -> list[int]:
    _cut(folder, _place(folder, 7, 1)[0] - 512)  # study7 keeps its volume and loses its json
    return [7, 8, 9]


def in_header(folder: Path) -> list[int]:
    _cut(folder, _place(folder, 7, 0)[0] - 400)
    return [7, 8, 9]


def in_data(folder: Path) -> list[int]:
    offset, size = _place(folder, 8, 0)
    _cut(folder, offset + size // 2)
    return [8, 9]


def in_the_end_marker(folder: Path) -> list[int]:
    _cut(folder, (folder / SHARD).stat().st_size - 700)
    return []


def payload(folder: Path) -> list[int]:
    offset, size = _place(folder, 6, 0)
    _flip(folder, offset + size // 2)
    return [6]


def payload_json(folder: Path) -> list[int]:
    _flip(folder, _place(folder, 6, 1)[0] + 3)
    return [6]


def header_name(folder: Path) -> list[int]:
    _flip(folder, _place(folder, 9, 0)[0] - 512 + 2)
    return [9]


def header_size(folder: Path) -> list[int]:
    _flip(folder, _place(folder, 5, 1)[0] - 512 + 130)
    return [5]


def header_padding(folder: Path) -> list[int]:
    _flip(folder, _place(folder, 5, 0)[0] - 1)
    return [5]


def missing(folder: Path) -> list[int]:
    (folder / SHARD).unlink()
    return ALL


def swapped(folder: Path) -> list[int]:
    shutil.copyfile(folder / "shard-000002.tar", folder / SHARD)
    return ALL


def swapped_same_size(folder: Path) -> list[int]:
    size = (folder / SHARD).stat().st_size
    (folder / SHARD).write_bytes((folder / "shard-000000.tar").read_bytes().ljust(size, b"\0")[:size])
    return ALL


SIZE_TELLS = [boundary, in_header, in_data, in_the_end_marker, missing, swapped]
READ_TELLS = [payload, payload_json, header_name, header_size, header_padding, swapped_same_size]
CLASSES = pytest.mark.parametrize("damage", [*SIZE_TELLS, *READ_TELLS])
Break = Callable[[Path], list[int]]


def read_all(found: ShardSet, row: int, whole: ShardSet) -> None:
    """Every member of a sample; what comes before the first damage must be whole."""
    for name in whole.members(row):
        assert found.member(row, name) == whole.member(row, name)


@CLASSES
@pytest.mark.parametrize("verify", ["first", "always"])
def test_reads_of_what_is_damaged_raise_and_the_rest_is_whole(
    shards: ShardSet, copy: Path, damage: Break, verify: str
) -> None:
    bad = damage(copy)
    if damage in SIZE_TELLS:
        with pytest.raises(DataError, match=rf"{SHARD} is (missing|truncated|longer)"):
            ShardSet.open(copy)
    else:
        assert len(ShardSet.open(copy)) == 14
    found = ShardSet.open(copy, damaged="count", verify=verify)  # type: ignore[arg-type]
    known = set(found.unreadable_rows().tolist())
    assert known <= set(bad) and (not bad or damage in READ_TELLS or damage is swapped or known == set(bad))
    for row in range(14):
        if row not in bad:
            np.testing.assert_array_equal(found.scan(row)[0][:], shards.scan(row)[0][:])
            assert found.json(row) == shards.json(row)
            continue
        with pytest.raises(DamagedError, match=rf"{SHARD}, sample study{row}: ") as raised:
            read_all(found, row, shards)
        assert (raised.value.shard, raised.value.key) == (SHARD, f"study{row}")


@CLASSES
def test_a_stream_skips_it_up_to_a_budget_and_stops_past_it(copy: Path, damage: Break) -> None:
    bad = damage(copy)
    found = ShardSet.open(copy, damaged="count")
    two_epochs: dict[str, Any] = {"shards": found, "batch_size": 5, "steps": 4}
    skipping = stream(**two_epochs, max_damaged=len(bad))
    keys = {key for batch in skipping for key in batch.keys}
    assert keys == {f"study{row}" for row in range(10) if row not in bad}
    assert sorted(skipping.damaged) == bad
    if bad:
        with pytest.raises(DataError, match=SHARD):
            list(stream(**two_epochs, max_damaged=len(bad) - 1))


@pytest.mark.full
@pytest.mark.parametrize(("budget", "code"), [("0", 1), ("1", 1), ("2", 0)])
def test_a_run_with_a_truncated_shard(
    copy: Path, tmp_path: Path, budget: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretrain import fit

    assert in_data(copy) == [8, 9]
    words = ["--config", "ct3d_real.yaml", "--smoke", "--data.source.path", str(copy), "--evaluate.task", "null"]
    words += ["--data.max_damaged", budget, "--train.steps", "4", "--train.batch_size", "5"]
    assert fit.main([*words, "--output.root", str(tmp_path / "runs"), "--output.run", "run"]) == code
    assert code == 0 or SHARD in capsys.readouterr().err


def _expected(bad: list[int], said: str) -> None:
    assert SHARD in said
    for row in bad:
        assert f"{SHARD}, sample study{row}: " in said
    for row in set(range(14)) - set(bad):
        assert f"study{row}:" not in said


@CLASSES
def test_check_names_each_of_them(
    copy: Path, damage: Break, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = damage(copy)
    assert main([str(copy), "--json", str(tmp_path / "found.json")]) == 1
    _expected(bad, capsys.readouterr().out)
    report = json.loads((tmp_path / "found.json").read_text())
    assert not report["ok"]
    damaged = report["sets"][0]["damage"]
    assert {(d["shard"], d["key"]) for d in damaged} == {(SHARD, ""), *((SHARD, f"study{row}") for row in bad)}


@pytest.mark.full
@CLASSES
def test_the_command_names_each_of_them(copy: Path, damage: Break) -> None:
    bad = damage(copy)
    command = [sys.executable, "-m", "data_shards.check", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    _expected(bad, done.stdout)


def test_a_shard_that_goes_away_while_it_is_read(copy: Path) -> None:
    shards = ShardSet.open(copy)
    missing(copy)
    with pytest.raises(DamagedError, match=rf"{SHARD}, sample study5: the shard cannot be opened"):
        shards.json(5)
    unchecked = ShardSet.open(copy, damaged="count", verify="never")
    with pytest.raises(DamagedError, match=SHARD):
        unchecked.scan(5, info={"scans": [{}]})


@pytest.mark.parametrize("verify", ["first", "never"])
def test_a_volume_that_goes_bad_after_its_first_check(copy: Path, verify: str) -> None:
    found = ShardSet.open(copy, damaged="count", verify=verify)  # type: ignore[arg-type]
    found.scan(6)
    in_place = found.scan(6)[0]
    offset, size = _place(copy, 6, 0)
    with (copy / SHARD).open("r+b") as file:
        file.seek(offset + 32)
        file.write(b"\xff" * (size - 32))
    for read in (lambda: in_place[2:4], lambda: found.scan(6)[0][2:4]):
        with pytest.raises(
            DamagedError, match=rf"{SHARD}, sample study6: member 00\.vol\.b2nd does not match its crc32"
        ):
            read()


def test_a_stream_counts_a_volume_that_goes_bad_while_it_runs(copy: Path) -> None:
    running = stream(shards=ShardSet.open(copy), batch_size=5, steps=6, max_damaged=1)
    batches = iter(running)
    first = [key for batch in (next(batches), next(batches)) for key in batch.keys]
    assert len(set(first)) == 10
    offset, size = _place(copy, 6, 0)
    with (copy / SHARD).open("r+b") as file:
        file.seek(offset + 32)
        file.write(b"\xff" * (size - 32))
    list(batches)
    assert sorted(running.damaged) == [6]


def test_too_few_descriptors_are_not_damage(copy: Path) -> None:
    """Of the machine, not of the shard: a stream with a budget must not skip good samples."""
    code = (
        "import os, resource, sys; from data_shards.shard_set import ShardSet\n"
        "shards = ShardSet.open(sys.argv[1])\n"
        "n = max(map(int, os.listdir('/proc/self/fd')))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))\n"
        "full = []\n"
        "try:\n"
        "    while True: full.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "try: shards.json(0)\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("DataError shard-000000.tar cannot be read (Too many open files)"), done.stdout
    assert "ulimit -n" in done.stdout


def test_a_folder_of_many_shards_keeps_few_open(tmp_path: Path, study: Callable[..., Any]) -> None:
    import os

    with ShardWriter(tmp_path / "set", max_samples=1) as writer:
        for i in range(80):
            writer.write(study(i, "train", (3, 3, 3)))
    shards = ShardSet.open(tmp_path / "set")
    before = len(os.listdir("/proc/self/fd"))
    for row in (*range(80), *range(80)):
        assert "scans" in shards.json(row)
    assert len(os.listdir("/proc/self/fd")) - before <= 64


@pytest.mark.parametrize("name", ["../shard-000001.tar", "/etc/passwd", ".hidden", "a/b.tar", 7])
def test_a_manifest_that_names_files_elsewhere_is_refused(copy: Path, name: object) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][1]["name"] = name
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        ShardSet.open(copy)
