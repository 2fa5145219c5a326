"""Shard sets in stores: real servers as processes on this machine's loopback, and the clients that users have."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.check import main
from data_shards.errors import DamagedError, DataError
from data_shards.remote import ATTEMPTS
from data_shards.shard_set import ShardSet
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

Serve = Callable[[list[str]], int]
SERVER = Path(__file__).with_name("web_server.py")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shard cache of this test."""
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VOXCLIP_READS", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """serve(command) starts a server, with PORT replaced by a free port, and returns the port once it answers."""
    running = []

    def start(command: list[str]) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        words = [sys.executable, *(word.replace("PORT", str(port)) for word in command)]
        running.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for _ in range(600):
            assert running[-1].poll() is None, "the server ended by itself"
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    return port
            time.sleep(0.1)
        raise AssertionError("the server does not answer")

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def copy(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(shard_folder, tmp_path_factory.mktemp("served") / "set"))


@pytest.fixture(scope="module")
def web(serve: Serve, copy: Path) -> str:
    return f"http://127.0.0.1:{serve([str(SERVER), str(copy), 'PORT'])}"


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def s3(serve: Serve, copy: Path, environment: pytest.MonkeyPatch) -> str:
    """The set in a bucket of an object server."""
    for package in ("s3fs", "moto", "flask"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 's3fs' 'moto[server]'")
    port = serve(["-m", "moto.server", "-H", "127.0.0.1", "-p", "PORT"])
    environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    environment.setenv("AWS_ACCESS_KEY_ID", "a-test")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-a-test")
    environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return upload(copy, "s3://lab/ct/set")


@pytest.fixture(scope="module")
def hub(web: str, environment: pytest.MonkeyPatch) -> str:
    """The set as a data set of a hub; huggingface_hub reads its endpoint when it is imported."""
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import constants

        environment.setattr(constants, "ENDPOINT", web)
    environment.setenv("HF_ENDPOINT", web)
    return "hf://datasets/lab/set"


def upload(folder: Path, url: str) -> str:
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    bucket = url.removeprefix("s3://").partition("/")[0]
    if not fs.exists(bucket):
        fs.mkdir(bucket)
    for path in folder.iterdir():
        fs.put_file(str(path), f"{url}/{path.name}")
    return url


@pytest.fixture(params=["web", "s3", "hub"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "web":
        return str(request.getfixturevalue("web")) + "/files"
    return str(request.getfixturevalue(request.param))


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock") if cache.is_dir() else []


def kept_bytes(cache: Path) -> int:
    """Of the whole shards in the cache, while others fetch and evict."""
    total = 0
    for path in list(cache.glob("*.tar")):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def sent(web: str, name: str) -> int:
    with urllib.request.urlopen(f"{web}/count/{name}", timeout=30) as answer:
        return int(answer.read())


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
    sums = {}
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
def test_a_run_trains_from_a_bucket(s3: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pretrain import fit

    words = ["--config", "ct3d_real.yaml", "--smoke", "--data.source.path", s3, "--evaluate.task", "null"]
    words += ["--output.root", str(tmp_path / "runs"), "--output.run", "run", "--data.workers", "2"]
    assert fit.main(words) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "run" / "release" / "release.json").is_file()


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


@pytest.fixture
def memory(shard_folder: Path) -> str:
    """The set in fsspec's store in memory: any protocol that fsspec knows will do."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(shard_folder) + "/", "/lab/set", recursive=True)
    return "memory://lab/set"


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


def test_a_kept_shard_of_the_wrong_bytes_is_noticed(memory: str, cache: Path) -> None:
    remote = ShardSet.open(memory, reads="cache")
    remote.json(0)
    (kept,) = cache.glob("*.tar")
    data = bytearray(kept.read_bytes())
    offset = remote.index["members"][0].as_py()[1]["offset"]
    data[offset + 1] ^= 1
    kept.write_bytes(data)
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


def test_a_missing_client_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(DataError, match=r"(?s)no client for s3:// is installed.*voxclip\[s3\]"):
        ShardSet.open("s3://bucket/set")
    with pytest.raises(DataError, match="no protocol that fsspec knows"):
        ShardSet.open("gopher://somewhere/set")


def test_a_strange_manifest_never_leads_out_of_the_cache(memory: str, cache: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    manifest = json.loads(fs.cat_file("/lab/set/manifest.json"))
    manifest["shards"][0]["sha256"] = "../../somewhere"
    fs.pipe_file("/lab/set/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        ShardSet.open(memory, reads="cache")
