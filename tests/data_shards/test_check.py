from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_shards.check import main
from data_shards.shard_set import ShardSet


def test_a_whole_set_passes(shard_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shard_folder)]) == 0
    assert "whole" in capsys.readouterr().out


def test_each_damage_is_named(shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    entry = ShardSet.open(copy).index.slice(8, 1).to_pylist()[0]
    place = entry["members"][1]
    data = bytearray((copy / entry["shard"]).read_bytes())
    data[place["offset"] + 3] ^= 4  # the json of sample 8
    (copy / entry["shard"]).write_bytes(data)
    other = bytearray((copy / "shard-000002.tar").read_bytes())
    other[-1] ^= 1  # padding: no member is touched, the sha256 is
    (copy / "shard-000002.tar").write_bytes(other)
    (copy / "stray.tar").write_bytes(b"")
    assert main([str(copy)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "stray.tar: not part of the shard set",
        "shard-000001.tar: sha256 does not match the manifest",
        "shard-000002.tar: sha256 does not match the manifest",
        "shard-000001.tar, sample study8: member json does not match its crc32",
        "4 problems",
    ]


def test_a_missing_shard(shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    (copy / "shard-000000.tar").unlink()
    assert main([str(copy)]) == 1
    assert "shard-000000.tar is missing" in capsys.readouterr().err
