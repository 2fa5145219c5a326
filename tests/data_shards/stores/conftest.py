"""Shard sets in stores: real servers as processes on this machine's loopback."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_shards.stores.helpers import SERVER, Serve, upload


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
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # an earlier module's have another endpoint
    return upload(copy, "s3://lab/ct/set")


@pytest.fixture(scope="module")
def hub(web: str, environment: pytest.MonkeyPatch) -> str:
    """The set as a data set of a hub. The variable is for child processes: it is read at import."""
    import fsspec

    environment.setitem(fsspec.config.conf, "hf", {"endpoint": web})
    environment.setenv("HF_ENDPOINT", web)
    return "hf://datasets/lab/set"


@pytest.fixture(params=["web", "s3", "hub"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "web":
        return str(request.getfixturevalue("web")) + "/files"
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def memory(shard_folder: Path) -> str:
    """The set in fsspec's store in memory: any protocol that fsspec knows will do."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(shard_folder) + "/", "/lab/set", recursive=True)
    return "memory://lab/set"
