"""Manifests and indexes that contradict each other, or are none: refused with a reason, never a traceback."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.check import main
from data_shards.errors import DataError
from data_shards.shard_set import ShardSet


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shard_folder, tmp_path / "copy"))


def _refused(copy: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=message):
        ShardSet.open(copy)
    assert main([str(copy)]) == 1
    assert "error: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": {"train": 999}}, "the manifest says {'train': 999}"),
        ({"splits": {"train": 10, "val": 3, "test": 1}}, "the index has the splits {'train': 10, 'val': 4}"),
        ({"splits": ["train"]}, r"manifest\.json is damaged"),
        ({"splits": {"train": "10", "val": 4}}, r"manifest\.json is damaged"),
        ({"label_names": ["effusion"]}, "the index has 2 labels"),
        ({"label_names": ["effusion", "nodule", "zz"]}, "they are not the 3 of the manifest"),
        ({"label_names": ["effusion", "effusion"]}, "they are not the 2"),
        ({"label_names": 3}, r"manifest\.json is damaged"),
        ({"samples": "14"}, r"manifest\.json is damaged"),
        ({"samples": 13}, "the index has 14 rows"),
    ],
)
def test_a_manifest_that_says_otherwise(
    copy: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | change))
    _refused(copy, message, capsys)


def _with_index(copy: Path, body: bytes) -> None:
    """Another index, of which the manifest says the right hash."""
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "index.parquet").write_bytes(body)
    manifest["index"] |= {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(manifest))


def _cast(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["patient"]), "no column 'patient' of type string"),
        (lambda t: t.drop_columns(["members"]), "no column 'members'"),
        (lambda t: t.append_column("key", t["key"]), "no column 'key'|no index of a shard set"),
        (lambda t: _cast(t, "label:nodule", t["label:nodule"].cast(pa.string())), "no column 'label:nodule' of type"),
        (lambda t: _cast(t, "members", pa.array([[]] * 14, t["members"].type)), "samples without members"),
        (lambda t: _cast(t, "members", pa.array([None] * 14, t["members"].type)), "rows without a key"),
        (lambda t: _cast(t, "key", pa.array([None] * 14, pa.string())), "rows without a key"),
        (lambda t: _cast(t, "shard", pa.array(["other.tar"] * 14)), "names shards or places"),
    ],
)
def test_an_index_that_is_not_the_manifests(
    copy: Path, change: Callable[[pa.Table], pa.Table], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(change(pq.read_table(copy / "index.parquet")), copy / "other")
    _with_index(copy, (copy / "other").read_bytes())
    (copy / "other").unlink()
    _refused(copy, message, capsys)


def test_an_index_that_is_none(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _with_index(copy, b"garbage")
    _refused(copy, "no index of a shard set", capsys)


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet"])
def test_a_file_that_cannot_be_read(copy: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(DataError, match=rf"{name} cannot be read \(Is a directory\)") as told:
        ShardSet.open(copy)
    assert str(copy) not in str(told.value)
    assert main([str(copy)]) == 1 and str(copy) not in capsys.readouterr().out
