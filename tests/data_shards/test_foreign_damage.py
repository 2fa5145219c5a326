"""Foreign tars that are damaged, hostile, or no business of ours."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from data_shards import DataError
from data_shards.errors import DamagedError
from data_shards.foreign import ForeignShards
from data_shards.preprocess import View
from data_shards.stream import ShardUnion, Stream, ordered_pass
from tests.data_shards import foreign_tars as tars
from tests.data_shards.test_foreign import CAPTIONS, GEOMETRY, tokenize


def test_a_flipped_byte_is_a_damaged_sample(tmp_path: Path) -> None:
    path = tars.unimed(tmp_path / "x.tar", 4)
    shards = ForeignShards.open(path, cache=tmp_path / "cache")
    body = bytearray(path.read_bytes())
    body[int(shards.sidecars[0].offset[2]) + 50] ^= 1
    path.write_bytes(body)
    shards.scan(1)
    with pytest.raises(DamagedError, match=r"x\.tar, sample \w{16}: the image does not match its crc32") as caught:
        shards.scan(2)
    assert (caught.value.shard, caught.value.key) == ("x.tar", shards.key(2))
    assert pickle.loads(pickle.dumps(caught.value)).key == shards.key(2)
    path.write_bytes(body[:1000])
    with pytest.raises(DamagedError, match="ends after 0 of"):
        pickle.loads(pickle.dumps(shards)).scan(3)
    path.unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        pickle.loads(pickle.dumps(shards)).scan(3)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_truncated_tar_is_named_and_its_whole_samples_can_be_declared_enough(tmp_path: Path, share: float) -> None:
    path = tars.biomedica(tmp_path / "x.tar", 10)
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * share)])
    with pytest.raises(DataError, match=r"1 samples or members cannot be used[^$]*x\.tar, member \d+: [^$]*file ends"):
        ForeignShards.open(path, cache=tmp_path / "cache")
    shards = ForeignShards.open(path, cache=tmp_path / "cache", max_damaged=1)
    assert 10 * share - 2.5 < len(shards) < 10 * share + 1 and len(shards.problems) == 1
    assert len(list(ordered_pass(shards, shards.rows(), GEOMETRY, View("centre"), tokenize, CAPTIONS, 4)))


def test_a_sample_cut_at_a_members_border_is_not_taken_for_whole(tmp_path: Path) -> None:
    path = tars.img2dataset(tmp_path / "in") / "00000.tar"
    body = path.read_bytes()
    path.write_bytes(body[: body.index(b"000000003.json")])  # jpg and txt are there: enough for the layout
    shards = ForeignShards.open(path, cache=tmp_path / "cache", max_damaged=1)
    assert len(shards) == 3


def test_decompression_bombs_raise(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")
    members = [("0.png", bomb), ("0.txt", b"a film"), ("1.png", tars.picture(1, "PNG")), ("1.txt", b"a film")]
    path = tars.write_tar(tmp_path / "x.tar", members)
    shards = ForeignShards.open(path, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"cannot be decoded \(DecompressionBombError\)"):
        list(ordered_pass(shards, shards.rows(), GEOMETRY, View("centre"), tokenize, CAPTIONS, 2))
    with pytest.raises(DataError, match="member 1: sample left out, the image cannot be decoded"):
        ForeignShards.open(path, cache=tmp_path / "cache", verify=True)


def test_half_an_image_is_damage_that_a_stream_may_skip(tmp_path: Path) -> None:
    members = [
        (f"{i}.{e}", b"film %d" % i if e == "txt" else tars.picture(i)) for i in range(6) for e in ("jpg", "txt")
    ]
    members[6] = ("3.jpg", tars.picture(3)[:-200])
    shards = ForeignShards.open(tars.write_tar(tmp_path / "x.tar", members), cache=tmp_path / "cache")
    rest = (GEOMETRY, View("centre"), tokenize, CAPTIONS)
    with pytest.raises(DamagedError, match=r"x\.tar, sample \w{16}: the image cannot be decoded") as caught:
        list(ordered_pass(shards, shards.rows(), *rest, 2))
    assert (caught.value.shard, caught.value.key) == ("x.tar", shards.key(3))
    stream = Stream(shards, shards.rows(), *rest, batch_size=3, seed=0, steps=2, max_damaged=1)
    assert sum(len(batch) for batch in stream) == 6 and list(stream.damaged) == [3]
    union = ShardUnion({"web": shards})
    with pytest.raises(DamagedError) as caught:
        list(ordered_pass(union, union.rows(), *rest, 2))
    assert (caught.value.shard, caught.value.key) == ("web/x.tar", union.key(3))


def test_hostile_members_write_and_execute_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = tars.raw(b"0.jpg", tars.picture(0)) + tars.raw(b"0.txt", b"a film")
    evil = tars.raw(b"../1.jpg", tars.picture(1)) + tars.header(b"2.jpg", kind=b"2") + tars.raw(b"3.pyd", b"cos\n")
    (folder / "x.tar").write_bytes(good + evil + tars.END)
    with pytest.raises(DataError, match=r"3 samples or members cannot be used"):
        ForeignShards.open(folder, cache=tmp_path / "cache")
    shards = ForeignShards.open(folder, cache=tmp_path / "cache", max_damaged=3)
    assert len(shards) == 1
    left = sorted(p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["cache", "in"]


def test_what_is_not_to_be_opened_is_refused(tmp_path: Path, shard_folder: Path, published: dict[str, Path]) -> None:
    cache = tmp_path / "cache"
    for where, said in (
        (shard_folder, "is a shard set of VoxCLIP"),
        (tmp_path / "nothing", r"no \.tar"),
        (tmp_path / "*.tar", r"no \.tar"),
    ):
        with pytest.raises(DataError, match=said):
            ForeignShards.open(where, cache=cache)
    path = next(published["unimed"].iterdir())
    with pytest.raises(DataError, match="two of the tars are the same file"):
        ForeignShards.open([path, shutil.copy(path, tmp_path / "copy.tar")], cache=cache)
    with pytest.raises(DataError, match="no layout 'x'"):
        ForeignShards.open(path, layout="x", cache=cache)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"1 tars in this folder are compressed \(\.gz\)[^$]*gunzip"):
        ForeignShards.open(tmp_path / "packed", cache=cache)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cache folder cannot be written"):
        ForeignShards.open(path, cache=tmp_path / "file")
