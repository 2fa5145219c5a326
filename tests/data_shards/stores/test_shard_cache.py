"""Whole shards kept on this machine: bounded, shared, and never wrong, whoever is killed when."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DamagedError, DataError
from data_shards.shard_set import ShardSet
from tests.data_shards.stores.helpers import entries, kept_bytes, sent
from tests.data_shards.test_stream import same, stream


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_that_is_too_small_evicts(
    shards: ShardSet, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    sizes = [entry["bytes"] for entry in shards.manifest["shards"]]
    limit = int(max(sizes) * 1.5)
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE_GB", repr(limit / 1e9))
    assert ShardSet.open(url).reads == "ranged", "what does not fit is read by ranges unless told"
    remote = ShardSet.open(url, reads="cache")
    seen = set()
    for a, b in zip(stream(remote, workers=workers, steps=9), stream(shards, steps=9), strict=True):
        same(a, b)
        seen |= set(entries(cache))
        assert kept_bytes(cache) <= limit
    assert len(entries(cache)) == 1 and (workers or len(seen) == 2), "one stays; both were there"


@pytest.mark.full
def test_the_cache_is_taken_where_the_set_fits_and_pickles(url: str, cache: Path, shards: ShardSet) -> None:
    remote = pickle.loads(pickle.dumps(ShardSet.open(url)))
    assert remote.reads == "cache"
    np.testing.assert_array_equal(remote.scan(3)[0][:], shards.scan(3)[0][:])
    assert len(entries(cache)) == 1
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1) as pool:
        assert pool.apply(remote.json, (4,)) == shards.json(4)


def _read_everything(url: str) -> int:
    shards = ShardSet.open(url, reads="cache")
    return sum(int(shards.scan(row)[0][:].astype(np.int64).sum()) for row in range(len(shards)))


@pytest.mark.full
def test_many_processes_fetch_each_shard_once(web: str, cache: Path, shards: ShardSet) -> None:
    before = [sent(web, entry["name"]) for entry in shards.manifest["shards"]]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        sums = pool.map(_read_everything, [f"{web}/files"] * 8, chunksize=1)
    assert sums == [sum(int(shards.scan(row)[0][:].astype(np.int64).sum()) for row in range(14))] * 8
    after = [sent(web, entry["name"]) for entry in shards.manifest["shards"]]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]
    assert len(entries(cache)) == 3


@pytest.mark.full
def test_a_killed_fetch_leaves_nothing_that_matters(web: str, cache: Path, shards: ShardSet) -> None:
    code = "import sys; from data_shards.shard_set import ShardSet; ShardSet.open(sys.argv[1], reads='cache').json(0)"
    process = subprocess.Popen([sys.executable, "-c", code, f"{web}/slow"])
    while not any(name.endswith(".part") for name in entries(cache)):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (part,) = entries(cache)
    assert part.endswith(".part")
    remote = ShardSet.open(f"{web}/files", reads="cache")
    assert remote.json(7) == shards.json(7), "another shard: what the killed one left is cleared away"
    assert [name.partition(".")[2] for name in entries(cache)] == ["tar"]
    assert remote.json(0) == shards.json(0)


def _read_at_random(url: str, seed: int) -> None:
    """Reads until it is killed; a wrong byte ends it with an error."""
    shards, order = ShardSet.open(url, reads="cache"), np.random.default_rng(seed)
    sums: dict[int, int] = {}
    while True:
        row = int(order.integers(len(shards)))
        total = int(shards.scan(row)[0][2:9, 3:9].astype(np.int64).sum())
        assert sums.setdefault(row, total) == total


@pytest.mark.full
def test_readers_killed_at_any_moment(web: str, cache: Path, shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes over a cache that holds less than two of three shards, one of them killed again and again."""
    limit = int(max(entry["bytes"] for entry in shards.manifest["shards"]) * 1.9)
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE_GB", repr(limit / 1e9))
    context, order = multiprocessing.get_context("fork"), np.random.default_rng(0)

    def start(seed: int) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_read_at_random, args=(f"{web}/files", seed))
        process.start()
        return process

    readers = [start(seed) for seed in range(4)]
    for seed in range(4, 24):
        time.sleep(order.uniform(0.05, 0.25))
        assert kept_bytes(cache) <= limit
        assert all(reader.is_alive() for reader in readers)
        os.kill(readers[0].pid or 0, signal.SIGKILL)
        readers.pop(0).join()
        readers.append(start(seed))
    for reader in readers:
        os.kill(reader.pid or 0, signal.SIGKILL)
        reader.join()
    remote = ShardSet.open(f"{web}/files", reads="cache")
    for row in range(14):
        np.testing.assert_array_equal(remote.scan(row)[0][:], shards.scan(row)[0][:])
    assert not [name for name in entries(cache) if name.endswith(".part")]


@pytest.mark.full
def test_a_full_disk_is_said(web: str, cache: Path) -> None:
    code = (
        "import resource, sys; from data_shards.shard_set import ShardSet\n"
        "shards = ShardSet.open(sys.argv[1], reads='cache')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))\n"
        "try: shards.json(0)\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, f"{web}/files"], capture_output=True, text=True, check=True)
    assert "the shard cache cannot take shard-000000.tar (File too large)" in done.stdout
    assert entries(cache) == []


@pytest.mark.full
def test_an_entry_in_use_stays(web: str, cache: Path, shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [entry["bytes"] for entry in shards.manifest["shards"]]
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE_GB", repr(max(sizes) * 1.2 / 1e9))
    remote = ShardSet.open(f"{web}/files", reads="cache")
    remote.scan(0)
    array, _ = remote.scan(0)  # the second time: decoded in place from the kept file
    (kept,) = entries(cache)
    again = ShardSet.open(f"{web}/files", reads="cache")
    np.testing.assert_array_equal(again.scan(7)[0][:], shards.scan(7)[0][:])
    assert entries(cache) == [kept], "no room while the first is in use: the second was read by ranges"
    np.testing.assert_array_equal(array[:], shards.scan(0)[0][:])
    del array
    fresh = ShardSet.open(f"{web}/files", reads="cache")
    fresh.json(7)
    assert entries(cache) != [kept] and len(entries(cache)) == 1


@pytest.mark.parametrize("limit", ["much", "0", "-1", "nan", "inf"])
def test_a_bound_that_is_none_is_refused(memory: str, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE_GB", limit)
    with pytest.raises(DataError, match="not a number of gigabytes"):
        ShardSet.open(memory)


def test_a_cache_smaller_than_a_shard_is_refused(memory: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE_GB", "1e-6")
    with pytest.raises(DataError, match="the largest shard has"):
        ShardSet.open(memory, reads="cache")


def test_a_cache_that_cannot_be_written(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE", str(tmp_path / "file" / "cache"))
    remote = ShardSet.open(memory, reads="cache")
    with pytest.raises(DataError, match=r"the shard cache cannot take shard-000000\.tar \(Not a directory\)"):
        remote.json(0)


def _spoil(cache: Path, remote: ShardSet, member: int) -> None:
    """Bit rot in the kept copy of the first shard: one member of row 0."""
    kept = cache / (remote.manifest["shards"][0]["sha256"] + ".tar")
    data, place = bytearray(kept.read_bytes()), remote.index["members"][0].as_py()[member]
    start = place["offset"] + 32
    data[start : start + place["bytes"] - 32] = b"\xff" * (place["bytes"] - 32)
    kept.write_bytes(data)


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_kept_shard_that_went_bad_is_fetched_again(
    memory: str, cache: Path, shards: ShardSet, member: int, fresh: bool
) -> None:
    remote = ShardSet.open(memory, reads="cache")
    array = remote.scan(0)[0]  # decoded in place, which holds the entry
    array = array[:] if fresh else array
    for _ in range(2):
        _spoil(cache, remote, member)
        remote = ShardSet.open(memory, reads="cache") if fresh else remote
        assert remote.json(0) == shards.json(0)
        np.testing.assert_array_equal(array[:], shards.scan(0)[0][:])
        np.testing.assert_array_equal(remote.scan(0)[0][:], shards.scan(0)[0][:])
    if fresh:
        again = ShardSet.open(memory, reads="ranged").store.whole("shard-000000.tar")
        assert (cache / (remote.manifest["shards"][0]["sha256"] + ".tar")).read_bytes() == again


def test_a_kept_shard_that_went_bad_while_another_reads_it(memory: str, cache: Path, shards: ShardSet) -> None:
    remote, other = ShardSet.open(memory, reads="cache"), ShardSet.open(memory, reads="cache")
    remote.json(0), other.scan(0)
    in_use = other.scan(1), other.scan(0)
    lease = other.store.held("shard-000000.tar")
    _spoil(cache, remote, 1)
    assert remote.json(0) == shards.json(0), "read by ranges; the entry stays where it is"
    assert lease and in_use and len(entries(cache)) == 1


def test_what_is_bad_in_the_store_too_is_damage(memory: str, cache: Path) -> None:
    import fsspec

    remote = ShardSet.open(memory, reads="cache")
    remote.json(0)
    _spoil(cache, remote, 1)
    fs = fsspec.filesystem("memory")
    bad = bytearray(fs.cat_file("/lab/set/shard-000000.tar"))
    bad[remote.index["members"][0].as_py()[1]["offset"] + 1] ^= 1
    fs.pipe_file("/lab/set/shard-000000.tar", bytes(bad))
    with pytest.raises(DamagedError, match="does not match its crc32"):
        remote.json(0)


def test_the_least_recently_used_goes_first(
    memory: str, cache: Path, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = shards.manifest["shards"]
    limit = sum(entry["bytes"] for entry in (first, second, third)) - 1
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE_GB", repr(limit / 1e9))
    cache.mkdir()
    (cache / "notes.txt").write_text("not ours")
    remote = ShardSet.open(memory, reads="cache")
    for row in (0, 5, 0, 10):
        assert remote.json(row) == shards.json(row)
    assert entries(cache) == sorted([first["sha256"] + ".tar", third["sha256"] + ".tar", "notes.txt"])


def test_a_strange_manifest_never_leads_out_of_the_cache(memory: str, cache: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    manifest = json.loads(fs.cat_file("/lab/set/manifest.json"))
    manifest["shards"][0]["sha256"] = "../../somewhere"
    fs.pipe_file("/lab/set/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        ShardSet.open(memory, reads="cache")
