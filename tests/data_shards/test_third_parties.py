"""Our shards are plain tars: other people's tools read them, to the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from data_shards import Study
from data_shards.shard_set import ShardSet, ShardWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, study: Callable[..., Study]) -> Path:
    """Six studies of one, two and three scans, in shards of two."""
    out = tmp_path_factory.mktemp("several") / "set"
    with ShardWriter(out, max_samples=2) as writer:
        for i in range(6):
            others = [replace(study(i + 10 * k).scans[0], role="prior") for k in range(1, 1 + i % 3)]
            writer.write(replace(study(i), scans=(*study(i).scans, *others)))
    return out


def test_tar_extracts_the_members_that_we_read(folder: Path, tmp_path: Path) -> None:
    tar = shutil.which("tar")
    if tar is None:
        pytest.skip("no tar program on this machine")
    for path in sorted(folder.glob("*.tar")):
        done = subprocess.run([tar, "-xvf", path, "-C", tmp_path], capture_output=True, text=True, check=True)
        assert done.stderr == ""
    shards = ShardSet.open(folder)
    names = {name for row in range(6) for name in shards.members(row)}
    assert {path.name for path in tmp_path.iterdir()} == names and len(names) == 6 + 12
    for row in range(6):
        for name in shards.members(row):
            assert (tmp_path / name).read_bytes() == shards.member(row, name)


def test_plain_webdataset_streams_samples_of_several_scans(folder: Path) -> None:
    import webdataset

    def volume(key: str, data: bytes) -> Any:
        return blosc2.ndarray_from_cframe(data)[:] if key.endswith("b2nd") else None

    shards = ShardSet.open(folder)
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode(volume))
    assert [sample["__key__"] for sample in samples] == [shards.key(row) for row in range(6)]
    for row, sample in enumerate(samples):
        scans = sorted(name for name in sample if name.endswith(".b2nd"))
        assert scans == [f"{i:02d}.vol.b2nd" for i in range(1 + row % 3)]
        for i, name in enumerate(scans):
            np.testing.assert_array_equal(sample[name], shards.scan(row, i)[0][:])
        body = sample["json"]
        assert (body if isinstance(body, dict) else json.loads(body)) == shards.json(row)
