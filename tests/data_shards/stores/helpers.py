"""What several tests of stores do."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Callable
from pathlib import Path

Serve = Callable[[list[str]], int]
SERVER = Path(__file__).with_name("web_server.py")


def upload(folder: Path, url: str) -> str:
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    bucket = url.removeprefix("s3://").partition("/")[0]
    if not fs.exists(bucket):
        fs.mkdir(bucket)
    for path in folder.iterdir():
        fs.put_file(str(path), f"{url}/{path.name}")
    return url


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
