"""Several shard sets read as one."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards import DataError, Scan, Study, Texts
from data_shards.foreign import ForeignShards
from data_shards.preprocess import PlanarGeometry, View
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.stream import Mixture, ShardUnion, Stream, UnitPolicy


@pytest.fixture
def other(tmp_path: Path, study: Callable[..., Study]) -> ShardSet:
    """Four studies with keys of the first set, other patients, other labels, and a split of its own."""
    with ShardWriter(tmp_path / "other", max_samples=2) as writer:
        for i in range(4):
            one = study(i, "train" if i < 3 else "extra", (9, 9, 9))
            writer.write(replace(one, patient=f"q{i}", labels={"nodule": 0, "cyst": 1}))
    return ShardSet.open(tmp_path / "other")


def test_rows_keys_and_patients_are_those_of_the_parts(shards: ShardSet, other: ShardSet) -> None:
    both = ShardUnion({"one": shards, "two": other})
    assert len(both) == 18 and both.rows().tolist() == list(range(18))
    assert both.rows("train").tolist() == [*range(10), 14, 15, 16]
    assert both.rows("val").tolist() == [10, 11, 12, 13] and both.rows("extra").tolist() == [17]
    assert both.manifest["splits"] == {"train": 13, "val": 4, "extra": 1}
    assert (both.key(1), both.key(15)) == ("one/study1", "two/study1")
    assert (both.patient(1), both.patient(15)) == ("patient0", "q1")
    assert (both.source(13), both.source(14)) == ("one", "two")
    assert both.source_R.tolist() == [0] * 14 + [1] * 4
    assert both.modality(17) == "CT"
    for row in (3, 16):
        part, own = (shards, row) if row < 14 else (other, row - 14)
        assert both.members(row) == part.members(own)
        assert both.member(row, "json") == part.member(own, "json")
        assert both.json(row) == part.json(own)
        assert np.array_equal(both.scan(row)[0][:], part.scan(own)[0][:])
    for row in (-1, 18):
        with pytest.raises(IndexError):
            both.key(row)
    with pytest.raises(DataError, match="no sample in split 'test' in any of one, two"):
        both.rows("test")
    with pytest.raises(DataError, match="no shard set"):
        ShardUnion({})


def test_a_label_that_a_source_lacks_is_unknown(shards: ShardSet, other: ShardSet) -> None:
    both = ShardUnion({"one": shards, "two": other})
    assert both.label_names == ("effusion", "nodule", "cyst")
    labels = both.labels(("cyst", "nodule", "effusion"))
    assert labels.dtype == np.float32 and labels.shape == (18, 3)
    assert np.isnan(labels[:14, 0]).all() and (labels[14:, 0] == 1).all()
    assert (labels[:14, 1] == 1).all() and (labels[14:, 1] == 0).all()
    assert np.array_equal(labels[:14, 2], shards.labels(("effusion",))[:, 0], equal_nan=True)
    assert np.isnan(labels[14:, 2]).all()
    with pytest.raises(DataError, match=r"no label \['heart'\] in any source"):
        both.labels(("heart",))


def test_the_identity_is_that_of_the_parts_in_order(shards: ShardSet, other: ShardSet) -> None:
    one = ShardUnion({"a": shards, "b": other})
    assert ShardUnion({"a": shards, "b": other}).manifest_hash == one.manifest_hash
    assert ShardUnion({"x": shards, "y": other}).manifest_hash == one.manifest_hash, "a name is not data"
    assert ShardUnion({"b": other, "a": shards}).manifest_hash != one.manifest_hash
    assert ShardUnion({"a": shards}).manifest_hash not in (one.manifest_hash, shards.manifest_hash)
    assert pickle.loads(pickle.dumps(one)).json(15) == one.json(15)  # as spawned workers get it


def test_a_patient_in_another_split_of_another_set_is_refused(
    shards: ShardSet, tmp_path: Path, study: Callable[..., Study]
) -> None:
    with ShardWriter(tmp_path / "leak") as writer:
        for i in (2, 3, 6, 12):  # 2, 3 and 6 train there and here; 12 is held out there
            writer.write(study(i, "train", (9, 9, 9)))
    with pytest.raises(DataError, match="1 studies in b/train of patients in a/val"):
        ShardUnion({"a": shards, "b": ShardSet.open(tmp_path / "leak")})


def test_other_peoples_tars_are_a_source_like_ours(tmp_path: Path) -> None:
    """A shard set of ours and a tar of images with texts, mixed into one batch."""
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    with ShardWriter(tmp_path / "ours") as writer:
        scan = Scan(array=None, image=file.getvalue(), ext="png", modality="CR")
        for i in range(4):
            writer.write(Study(f"film{i}", f"p{i}", "train", (scan,), Texts(report=f"Film {i}."), {"nodule": 1}))
    with tarfile.open(tmp_path / "theirs.tar", "w") as tar:
        for i in range(4):
            for ext, body in (("png", file.getvalue()), ("txt", f"figure {i}".encode())):
                member = tarfile.TarInfo(f"{i:05d}.{ext}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    theirs = ForeignShards.open(tmp_path / "theirs.tar", cache=tmp_path / "cache")
    both = ShardUnion({"ours": ShardSet.open(tmp_path / "ours"), "theirs": theirs})
    stream = Stream(
        both, both.rows("train"), PlanarGeometry(size=(8, 8)), View("resize", (8, 8)), lambda text: [1, 2],
        UnitPolicy(report=True, captions=True), batch_size=4, seed=0, steps=2, label_names=("nodule",),
        mixture=Mixture(mix="uniform", batches="stratified"),
    )  # fmt: skip
    for batch in stream:
        assert sorted(key.partition("/")[0] for key in batch.keys) == ["ours", "ours", "theirs", "theirs"]
        assert [bool(v) for v in batch.labels_BL.isnan()[:, 0]] == [key.startswith("theirs") for key in batch.keys]
        assert len(set(batch.patient_B.tolist())) == 4


def test_damage_is_named_with_its_source(shards: ShardSet, shard_folder: Path, tmp_path: Path, other: ShardSet) -> None:
    shard = tmp_path / "other" / "shard-000001.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match=r"source two: shard-000001\.tar, sample study2: member json has another"):
        ShardUnion({"one": shards, "two": other}).json(16)
