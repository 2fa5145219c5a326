from __future__ import annotations

import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest

from data_shards import DataError, Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shard_folder, tmp_path / "copy"))


def _flip(folder: Path, row: int, member: int = 0) -> str:
    """Flip one bit in the middle of a member's payload; the shard's name."""
    entry = ShardSet.open(folder).index.slice(row, 1).to_pylist()[0]
    place = entry["members"][member]
    data = bytearray((folder / entry["shard"]).read_bytes())
    data[place["offset"] + place["bytes"] // 2] ^= 1
    (folder / entry["shard"]).write_bytes(data)
    return entry["shard"]


def test_what_is_written_is_read(shards: ShardSet, study: Callable[..., Study]) -> None:
    assert len(shards) == 14
    for row in (0, 7, 13):
        want = study(row, "train" if row < 10 else "val", (10 + row % 3, 14, 18))
        source, meta = shards.scan(row)
        np.testing.assert_array_equal(source[:], want.scans[0].array)
        assert shards.json(row) == want.to_json()
        assert meta["spacing_mm"] == [3.0, 2.0, 2.0]
        assert (shards.key(row), shards.patient(row)) == (want.key, want.patient)


def test_plain_webdataset_reads_the_shards(shard_folder: Path, study: Callable[..., Study]) -> None:
    import json

    import webdataset

    urls = sorted(str(p) for p in shard_folder.glob("*.tar"))
    decoders = [
        webdataset.autodecode.Decoder(
            [lambda key, data: blosc2.ndarray_from_cframe(data)[:] if key.endswith("b2nd") else None]
        )
    ]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).map(decoders[0]))
    assert [s["__key__"] for s in samples] == [f"study{i}" for i in range(14)]
    np.testing.assert_array_equal(samples[3]["00.vol.b2nd"], study(3, shape=(10, 14, 18)).scans[0].array)
    body = samples[3]["json"]
    assert (body if isinstance(body, dict) else json.loads(body))["labels"] == {"effusion": None, "nodule": 1}


def test_equal_studies_give_equal_bytes(shard_folder: Path, tmp_path: Path, study: Callable[..., Study]) -> None:
    with ShardWriter(tmp_path / "again", max_samples=5) as writer:
        for i in range(14):
            writer.write(study(i, "train" if i < 10 else "val", (10 + i % 3, 14, 18)))
    for path in shard_folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_tars_carry_no_trace_of_the_machine(shard_folder: Path) -> None:
    with tarfile.open(shard_folder / "shard-000000.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


def test_a_crop_decodes_in_place(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(0, 300, (96, 128, 128)).astype(np.int16)
    big = Study("big", "p", "train", (Scan(array=array, spacing_mm=(1, 1, 1)),), Texts(report="A scan."))
    with ShardWriter(tmp_path / "out") as writer:
        writer.write(big)
    shards = ShardSet.open(tmp_path / "out", verify="never")
    source, _ = shards.scan(0)
    assert source.chunks == (32, 64, 64)
    np.testing.assert_array_equal(source[40:50, 10:90, 60:70], array[40:50, 10:90, 60:70])


def test_labels_keep_unknown_apart_from_absent(shards: ShardSet) -> None:
    labels = shards.labels(("effusion", "nodule"))
    np.testing.assert_array_equal(labels[:4, 0], [np.nan, 1, 0, np.nan])
    assert (labels[:, 1] == 1).all()
    with pytest.raises(DataError, match=r"no label \['cyst'\]"):
        shards.labels(("cyst",))


def test_splits(shards: ShardSet) -> None:
    assert shards.rows("val").tolist() == [10, 11, 12, 13]
    with pytest.raises(DataError, match="no sample in split 'test'"):
        shards.rows("test")


def test_several_scans_of_a_study(tmp_path: Path) -> None:
    first, second = (np.full((3, 4, 5), v, np.int16) for v in (1, 2))
    scans = tuple(Scan(array=a, spacing_mm=(1, 1, 1), role=r) for a, r in ((first, "prior"), (second, "primary")))
    with ShardWriter(tmp_path / "out") as writer:
        writer.write(Study("s", "p", "train", scans, Texts(report="Two scans.")))
    shards = ShardSet.open(tmp_path / "out")
    assert shards.members(0) == ["s.00.vol.b2nd", "s.01.vol.b2nd", "s.json"]
    assert shards.scan(0, 1)[0][:].max() == 2


def test_pickled_set_reads_on(shards: ShardSet) -> None:
    shards.scan(0)
    again = pickle.loads(pickle.dumps(shards))
    np.testing.assert_array_equal(again.scan(0)[0][:], shards.scan(0)[0][:])


def test_missing_shard_is_named(copy: Path) -> None:
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar is missing"):
        ShardSet.open(copy)


def test_truncated_shard_is_named(copy: Path) -> None:
    path = copy / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"shard-000002\.tar is truncated"):
        ShardSet.open(copy)


def test_swapped_index_and_missing_manifest(copy: Path) -> None:
    body = bytearray((copy / "index.parquet").read_bytes())
    body[100] ^= 1
    (copy / "index.parquet").write_bytes(body)
    with pytest.raises(DataError, match=r"index\.parquet does not have the hash"):
        ShardSet.open(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        ShardSet.open(copy)


@pytest.mark.parametrize("verify", ["first", "always"])
def test_flipped_byte_in_a_volume(copy: Path, verify: str) -> None:
    shard = _flip(copy, row=6)
    shards = ShardSet.open(copy, verify=verify)  # type: ignore[arg-type]
    shards.scan(5)
    with pytest.raises(DataError, match=rf"{shard}, sample study6: member 00\.vol\.b2nd does not match its crc32"):
        shards.scan(6)


def test_flipped_byte_in_the_json(copy: Path) -> None:
    shard = _flip(copy, row=2, member=1)
    with pytest.raises(DataError, match=f"{shard}, sample study2: member json"):
        ShardSet.open(copy).json(2)


def test_damage_after_the_first_look_needs_always(copy: Path) -> None:
    shards = ShardSet.open(copy, verify="always")
    shards.scan(6)
    _flip(copy, row=6)
    with pytest.raises(DataError, match="crc32"):
        shards.scan(6)


def test_an_error_leaves_nothing_behind(tmp_path: Path, study: Callable[..., Study]) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path / "out") as writer:
            writer.write(study(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_mixed_with(shard_folder: Path) -> None:
    with pytest.raises(DataError, match="already holds files"):
        ShardWriter(shard_folder)


def test_repeated_key_and_patient_in_two_splits(tmp_path: Path, study: Callable[..., Study]) -> None:
    writer = ShardWriter(tmp_path / "out")
    writer.write(study(0, "train"))
    with pytest.raises(DataError, match="key study0 is written twice"):
        writer.write(study(0, "train"))
    with pytest.raises(DataError, match="its patient is in split 'train' already, and now in 'val'"):
        writer.write(study(1, "val"))
    writer.abort()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": Texts(report="  ")}, "has no text, only white space"),
        ({"key": "a.b"}, "must be 1-80 letters"),
        ({"labels": {"x": 2}}, "are not 0, 1 or unknown"),
        ({"scans": (Scan(array=np.zeros((2, 9, 9), np.int16), spacing_mm=(1, 1, 1)),)}, "fewer than 3 voxels"),
        ({"scans": (Scan(array=np.zeros((9, 9, 9, 2), np.int16), spacing_mm=(1, 1, 1)),)}, "4 axes, not 3"),
        ({"scans": (Scan(array=np.full((3, 3, 3), np.nan, np.float16), spacing_mm=(1, 1, 1)),)}, "NaN"),
        ({"scans": (Scan(array=np.zeros((9, 9, 9), np.int16), spacing_mm=(1, 0, 1)),)}, "not three positive numbers"),
        ({"scans": (Scan(array=np.zeros((9, 9, 9), np.float64), spacing_mm=(1, 1, 1)),)}, "dtype float64"),
    ],
)
def test_bad_studies_are_refused(
    tmp_path: Path, study: Callable[..., Study], change: dict[str, object], message: str
) -> None:
    from dataclasses import replace

    writer = ShardWriter(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        writer.write(replace(study(0), **change))  # type: ignore[arg-type]
    writer.abort()
