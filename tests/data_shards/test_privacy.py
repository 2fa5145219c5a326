from __future__ import annotations

import stat
from pathlib import Path

import pytest

from data_shards import DataError
from data_shards.privacy import hashed, resolve_salt


def test_hashes_depend_on_value_and_salt() -> None:
    assert hashed("4711", "a") == hashed("4711", "a")
    assert len({hashed("4711", "a"), hashed("4711", "b"), hashed("4712", "a")}) == 3
    assert len(hashed("4711", "a")) == 16
    assert int(hashed("4711", "a"), 16)


def test_the_salt_is_made_once_beside_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOXCLIP_SALT", raising=False)
    salt = resolve_salt(tmp_path / "out" / "shards")
    assert salt == resolve_salt(tmp_path / "out" / "other")
    made = tmp_path / "out" / ".voxclip-salt"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert salt != resolve_salt(tmp_path / "elsewhere" / "shards")
    monkeypatch.setenv("VOXCLIP_SALT", "secret")
    assert resolve_salt(tmp_path / "out" / "shards") == "secret"
    monkeypatch.setenv("VOXCLIP_SALT", " ")
    with pytest.raises(DataError, match="salt is empty"):
        resolve_salt(tmp_path)
