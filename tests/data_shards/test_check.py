from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import Scan, Study, Texts
from data_shards.check import main
from data_shards.shard_set import ShardSet, ShardWriter


def _write(folder: Path, studies: list[Study], **options: Any) -> str:
    with ShardWriter(folder, **options) as writer:
        for one in studies:
            writer.write(one)
    return str(folder)


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_a_whole_set_passes(shard_folder: Path, capsys: pytest.CaptureFixture[str], deep: list[str]) -> None:
    assert main([str(shard_folder), *deep]) == 0
    assert capsys.readouterr().out.splitlines() == ["14 samples in 3 shards: whole, every member matches its checksum"]


def test_several_damages_and_strange_files(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    entry = ShardSet.open(copy).index.slice(8, 1).to_pylist()[0]
    place = entry["members"][1]
    data = bytearray((copy / entry["shard"]).read_bytes())
    data[place["offset"] + 3] ^= 4  # the json of sample 8
    (copy / entry["shard"]).write_bytes(data)
    other = bytearray((copy / "shard-000002.tar").read_bytes())
    other[-1] ^= 1  # padding: no member is touched, the sha256 is
    (copy / "shard-000002.tar").write_bytes(other)
    for name in ("stray.tar", "ROE^JANE.dcm", "notes.jane"):
        (copy / name).write_bytes(b"")
    (copy / "rejected.csv").write_text("key,reason\n")
    assert main([str(copy)]) == 1
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "3 files are not part of the shard set (1 .dcm, 1 .tar, 1 other)",
        "shard-000001.tar: sha256 does not match the manifest",
        "shard-000001.tar, sample study8: member json does not match its crc32",
        "shard-000002.tar: sha256 does not match the manifest",
        "14 samples in 3 shards: 4 problems",
    ]
    assert "jane" not in said.lower()


def test_a_set_that_cannot_be_opened_does_not_hide_the_others(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    assert main([str(copy), str(shard_folder)]) == 1
    said = capsys.readouterr().out
    assert "set 1: error: no manifest.json" in said
    assert "set 2: 14 samples in 3 shards: whole" in said


def test_stored_as_written_but_not_decodable(
    tmp_path: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    """What a writer with a fault leaves behind: every checksum agrees, and only decoding tells."""
    from data_shards.shard_set import encode_study

    good = encode_study(study(0))
    bad = replace(
        encode_study(study(2)), members=(("study2.00.vol.b2nd", b"nothing"), encode_study(study(2)).members[1])
    )
    with ShardWriter(tmp_path / "set") as writer:
        writer.write(good)
        writer.write(bad)
    assert main([str(tmp_path / "set")]) == 0
    assert main([str(tmp_path / "set"), "--deep"]) == 1
    assert "sample study2: stored as it was written, but it does not decode" in capsys.readouterr().out


def test_duplicates_within_a_split_are_a_note(
    tmp_path: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    twin = replace(study(4), scans=study(0).scans)
    words = replace(study(6), texts=Texts(report="NO acute  disease"))
    again = replace(study(8), texts=Texts(report="No acute disease."))
    assert main([_write(tmp_path / "set", [study(0), study(2), twin, words, again])]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "note: 2 samples share an image within a split",
        "  train study0 = train study4",
        "note: 2 samples share a report within a split",
        "  train study6 = train study8",
    ]


def test_an_image_in_two_splits_leaks(
    tmp_path: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    twin = replace(study(4, "test"), scans=(study(2).scans[0], study(0).scans[0]))
    folder = _write(tmp_path / "set", [study(0), study(2, "val"), twin])
    assert main([folder, "--json", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        "LEAKAGE: 4 samples share an image between splits",
        "  test study4 = train study0",
        "  test study4 = val study2",
    ]
    report = json.loads((tmp_path / "out.json").read_text())
    assert not report["ok"] and not report["sets"][0]["damage"]
    assert report["duplicate_images"][0] == {
        "between_splits": True,
        "samples": [
            {"set": 1, "split": "test", "key": "study4"},
            {"set": 1, "split": "train", "key": "study0"},
        ],
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_deep_sees_through_storage(
    tmp_path: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same voxels in other chunks are other bytes; only decoding shows that they are the same."""
    left = _write(tmp_path / "left", [study(0)])
    right = _write(tmp_path / "right", [replace(study(0, "val"), key="other", patient="other")], chunk=(5, 7, 9))
    assert main([left, right]) == 0
    assert "image" not in capsys.readouterr().out
    assert main([left, right, "--deep"]) == 1
    assert "LEAKAGE: 2 samples share an image between splits" in capsys.readouterr().out


def test_the_same_report_between_splits_is_a_note(
    tmp_path: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    normal = Texts(report="Normal chest.")
    pair = [replace(study(0), texts=normal), replace(study(2, "val"), texts=normal)]
    assert main([_write(tmp_path / "set", pair)]) == 0
    assert "note: 2 samples share a report between splits" in capsys.readouterr().out


def test_patients_of_two_sets(tmp_path: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture[str]) -> None:
    train = _write(tmp_path / "train", [study(0), study(2)])
    held_out = _write(tmp_path / "val", [study(1, "val"), study(4, "val")])
    more = _write(tmp_path / "more", [study(3)])
    assert main([train, held_out]) == 1
    said = capsys.readouterr().out
    assert "LEAKAGE: 1 patients are in several splits\n  set 1 train study0 = set 2 val study1\n" in said
    assert main([train, more]) == 0
    assert "note: 1 patients are in several sets, in the same split\n  set 1 train study2 = set 2 train study3" in (
        capsys.readouterr().out
    )


def test_images_of_planar_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import io

    from PIL import Image

    def encoded(level: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.full((16, 16), level, np.uint8)).save(out, "PNG")
        return out.getvalue()

    def one(key: str, image: bytes) -> Study:
        return Study(key, key, "train", (Scan(image=image, ext="png", modality="CR"),), Texts(report=f"Film {key}."))

    folder = _write(tmp_path / "set", [one("a", encoded(1)), one("b", encoded(2)), one("c", encoded(1))])
    assert main([folder, "--deep"]) == 0
    assert "train a = train c" in capsys.readouterr().out


def test_long_lists_are_cut_on_the_screen_and_whole_in_the_file(
    tmp_path: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(_write(tmp_path / "set", [study(i, shape=(3, 3, 3)) for i in range(25)]))
    (folder / "shard-000000.tar").unlink()
    assert main([str(folder), "--json", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr().out
    assert "shard-000000.tar is missing (25 samples)" in said and "... and 6 more (--json FILE has all)" in said
    assert len(json.loads((tmp_path / "out.json").read_text())["sets"][0]["damage"]) == 26


def test_a_disk_that_fails_is_damage(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No disk fails on demand: the two calls that read a shard fail for one of them, as the system would."""
    import builtins
    import errno
    import os

    bad, real_open, real_pread = shard_folder / "shard-000001.tar", builtins.open, os.pread

    def opened(path: Any, *args: Any, **options: Any) -> Any:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real_open(path, *args, **options)

    def pread(fd: int, size: int, offset: int) -> bytes:
        if os.path.samestat(os.fstat(fd), bad.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_pread(fd, size, offset)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(os, "pread", pread)
    assert main([str(shard_folder)]) == 1
    said = capsys.readouterr().out
    assert "shard-000001.tar: cannot be read (Input/output error)" in said and str(shard_folder) not in said
    assert all(f"sample study{row}: the shard cannot be opened (Input/output error)" in said for row in range(5, 10))
    assert "14 samples in 3 shards: 6 problems" in said
