"""Shard sets read from stores with the clients that users have; the servers are real."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.check import main
from data_shards.errors import DamagedError, DataError
from data_shards.remote import ATTEMPTS
from data_shards.shard_set import ShardSet
from tests.data_shards.stores.helpers import SERVER, Serve, entries, upload
from tests.data_shards.test_damage import (
    SHARD,
    boundary,
    header_name,
    in_data,
    missing,
    payload,
    read_all,
    swapped,
    swapped_same_size,
)
from tests.data_shards.test_stream import same, stream


@pytest.mark.full
@pytest.mark.parametrize("reads", ["ranged", "cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_from_a_store_is_that_from_disk(
    shards: ShardSet, url: str, cache: Path, reads: str, workers: int
) -> None:
    remote = ShardSet.open(url, reads=reads)  # type: ignore[arg-type]
    assert (remote.reads, remote.manifest_hash) == (reads, shards.manifest_hash)
    for name in ("key", "members"):
        assert remote.index[name].equals(shards.index[name])
    remote.json(0)  # the parent's event loop runs before the workers are forked
    got = list(stream(remote, workers=workers))
    for a, b in zip(got, stream(shards), strict=True):
        same(a, b)
    assert len(entries(cache)) == (2 if reads == "cache" else 0), "train lies in two of the three shards"


@pytest.mark.full
@pytest.mark.parametrize("damage", [boundary, in_data, payload, header_name, missing, swapped, swapped_same_size])
@pytest.mark.parametrize("reads", ["ranged", "cache"])
@pytest.mark.parametrize("store", ["web", "s3"])
def test_damage_in_a_store(
    request: pytest.FixtureRequest,
    shard_folder: Path,
    shards: ShardSet,
    serve: Serve,
    tmp_path: Path,
    cache: Path,
    damage: Callable[[Path], list[int]],
    reads: str,
    store: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(shard_folder, tmp_path / "set"))
    bad = damage(folder)
    if store == "s3":
        request.getfixturevalue("s3")
        url = upload(folder, f"s3://lab/{damage.__name__}-{reads}")
    else:
        url = f"http://127.0.0.1:{serve([str(SERVER), str(folder), 'PORT'])}/files"
    if damage in (boundary, in_data, missing, swapped):
        with pytest.raises(DataError, match=f"{SHARD} is "):
            ShardSet.open(url, reads=reads)  # type: ignore[arg-type]
    found = ShardSet.open(url, damaged="count", reads=reads)  # type: ignore[arg-type]
    for row in range(14):
        if row in bad:
            with pytest.raises(DamagedError, match=rf"{SHARD}, sample study{row}: ") as raised:
                read_all(found, row, shards)
            assert (raised.value.shard, raised.value.key) == (SHARD, f"study{row}")
            continue
        for _ in range(2):
            np.testing.assert_array_equal(found.scan(row)[0][:], shards.scan(row)[0][:])
    whole = [entry["sha256"] + ".tar" for entry in shards.manifest["shards"] if entry["name"] != SHARD]
    assert entries(cache) == (sorted(whole) if reads == "cache" else []), "what has a wrong hash is never kept"
    assert main([url]) == 1
    said = capsys.readouterr().out
    assert all(f"{SHARD}, sample study{row}: " in said for row in bad) and "127.0.0.1" not in said


@pytest.mark.full
def test_check_reads_a_whole_set_from_a_store(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([url, "--deep"]) == 0
    assert "14 samples in 3 shards: whole" in capsys.readouterr().out


@pytest.mark.full
def test_check_finds_strange_objects_in_a_bucket(s3: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = upload(copy, "s3://lab/strange")
    import s3fs

    s3fs.S3FileSystem().pipe_file(f"{url}/ROE^JANE.dcm", b"x")
    assert main([url]) == 1
    assert "1 files are not part of the shard set (1 .dcm)" in capsys.readouterr().out


@pytest.mark.full
def test_the_parent_reads_on_while_forked_workers_read(url: str) -> None:
    """Forked children share the epoll of the parent's event loop: one that closes its connections stops the parent."""
    code = (
        "import gc, multiprocessing, sys; from data_shards.shard_set import ShardSet\n"
        "shards = ShardSet.open(sys.argv[1], reads='ranged')\n"
        "def child():\n    shards.json(0); gc.collect()\n"
        "for row in range(3):\n"
        "    children = [multiprocessing.get_context('fork').Process(target=child) for _ in range(2)]\n"
        "    [one.start() for one in children]; [one.join() for one in children]\n"
        "    print(shards.key(row), shards.json(row)['patient'])\n"
    )
    command = [sys.executable, "-c", code, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout.splitlines() == ["study0 patient0", "study1 patient0", "study2 patient1"]


@pytest.mark.full
def test_a_run_trains_from_a_bucket(s3: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pretrain import fit

    words = ["--config", "ct3d_real.yaml", "--smoke", "--data.source.path", s3, "--evaluate.task", "null"]
    words += ["--output.root", str(tmp_path / "runs"), "--output.run", "run", "--data.workers", "2"]
    assert fit.main(words) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "run" / "release" / "release.json").is_file()


@pytest.mark.full
@pytest.mark.parametrize("code", [503, 429, 0])
def test_a_server_with_hiccups_is_asked_again(
    web: str, shards: ShardSet, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr("data_shards.remote.FIRST_WAIT_S", 0.01)
    remote = ShardSet.open(f"{web}/flaky/2/{code}", reads="ranged")
    assert remote.json(0) == shards.json(0)


@pytest.mark.full
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (503, rf"store after {ATTEMPTS} attempts \(status 503\)"),
        (0, rf"store after {ATTEMPTS} attempts \("),
        (403, r"store \(status 403\)\n.*\n.*set the credentials"),
    ],
)
def test_a_server_that_stays_away_is_said_without_its_address(
    web: str, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    monkeypatch.setattr("data_shards.remote.FIRST_WAIT_S", 0.01)
    address = web.replace("http://", "http://jane:hidden@") + f"/flaky/99/{code}?signature=hidden"
    with pytest.raises(DataError, match=message) as raised:
        ShardSet.open(address)
    assert not any(word in str(raised.value) for word in ("hidden", "jane", "127.0.0.1"))
    assert not isinstance(raised.value, DamagedError), "a store that is away is no damage to be skipped"


@pytest.mark.full
def test_a_signed_address_signs_every_file(web: str, shards: ShardSet) -> None:
    assert ShardSet.open(f"{web}/signed?token=a-token", reads="ranged").json(0) == shards.json(0)
    with pytest.raises(DataError, match="status 403") as raised:
        ShardSet.open(f"{web}/signed?token=another")
    assert "another" not in str(raised.value)


@pytest.mark.full
def test_a_store_that_is_away_or_not_there(s3: str, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_shards.remote.FIRST_WAIT_S", 0.01)
    with pytest.raises(DataError, match=r"no manifest\.json at this place"):
        ShardSet.open("s3://lab/nothing/here")
    with pytest.raises(DataError, match=r"no manifest\.json at this place"):
        ShardSet.open(f"{web}/nowhere")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(DataError, match=f"after {ATTEMPTS} attempts"):
            ShardSet.open(f"http://127.0.0.1:{free.getsockname()[1]}/set")


@pytest.mark.full
def test_a_server_without_ranges(serve: Serve, copy: Path, cache: Path, shards: ShardSet) -> None:
    port = serve(["-m", "http.server", "PORT", "--bind", "127.0.0.1", "--directory", str(copy)])
    url = f"http://127.0.0.1:{port}"
    os.environ["VOXCLIP_SHARD_CACHE_GB"] = "0.001"  # the set does not fit, and is kept all the same
    try:
        remote = ShardSet.open(url)
    finally:
        del os.environ["VOXCLIP_SHARD_CACHE_GB"]
    assert remote.reads == "cache"
    assert remote.json(0) == shards.json(0)
    with pytest.raises(DataError, match="answers a ranged read with more bytes"):
        ShardSet.open(url, reads="ranged").json(0)


@pytest.mark.parametrize("reads", ["ranged", "cache"])
def test_any_protocol_of_fsspec(memory: str, cache: Path, shards: ShardSet, reads: str) -> None:
    remote = ShardSet.open(memory, reads=reads)  # type: ignore[arg-type]
    for row in range(14):
        for _ in range(2):
            np.testing.assert_array_equal(remote.scan(row)[0][:], shards.scan(row)[0][:])
        assert remote.json(row) == shards.json(row)
    assert len(entries(cache)) == (3 if reads == "cache" else 0)
    for a, b in zip(stream(remote), stream(shards), strict=True):
        assert torch.equal(a.images_BCDHW, b.images_BCDHW)


def test_check_takes_a_url(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([memory]) == 0
    assert "14 samples in 3 shards: whole" in capsys.readouterr().out


def test_the_environment_chooses_how_to_read(memory: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ShardSet.open(memory).reads == "cache"
    monkeypatch.setenv("VOXCLIP_READS", "ranged")
    assert ShardSet.open(memory).reads == "ranged"
    assert ShardSet.open(memory, reads="cache").reads == "cache"
    monkeypatch.setenv("VOXCLIP_READS", "guess")
    with pytest.raises(DataError, match="reads is 'guess'"):
        ShardSet.open(memory)


def test_a_missing_client_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(DataError, match=r"(?s)no client for s3:// is installed.*voxclip\[s3\]"):
        ShardSet.open("s3://bucket/set")
    with pytest.raises(DataError, match="no protocol that fsspec knows"):
        ShardSet.open("gopher://somewhere/set")


@pytest.mark.parametrize(
    "url",
    [
        "zip://a::http://us:secret@127.0.0.1:1/patients/set.zip?sig=secret",
        "ftp://us:secret@127.0.0.1:1/patients",
        "http://127.0.0.1:99999/patients",
    ],
)
def test_an_address_that_fails_at_once_is_not_shown(url: str) -> None:
    import traceback

    with pytest.raises(DataError) as told:
        ShardSet.open(url)
    said = "".join(traceback.format_exception(told.value))
    assert not any(word in said for word in ("secret", "us:", "patients.", "127.0.0.1")), said
