"""The folder beside OUT that a build works in: killed at any moment, the next start goes on from its finished shards.

`.OUT.building/` holds `lock`, `about.json` (which build this is), `journal.jsonl` (a line a finished shard) and `set/`,
which becomes OUT by one rename. A shard is written under another name, synced, renamed, and only then journaled; so the
journal never names a shard that is not whole, and one it does not name is made again from its first study.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from data_shards.catalogue import Catalogue
from data_shards.engine import Rejection
from data_shards.errors import DataError
from data_shards.journal import Journal, sync_folder
from data_shards.shard_write import REJECTED, ShardFile, require_free, shard_name

PART = ".part"


class BuildFolder:
    """Opened by `with`: locked, compared with what was begun there, its journal read.

    Args:
        out: the folder to make in the end.
        about: name -> value of everything that decides the bytes but the studies themselves: options, program.
    Raises: DataError where another process builds the same OUT, or another build was begun there.
    """

    def __init__(self, out: Path, about: dict[str, str]) -> None:
        self.out, self.about = out, about
        self.work = work_folder(out)
        self.set = self.work / "set"

    def __enter__(self) -> BuildFolder:
        self._lock = _locked(self.work)
        try:
            self._same_build()
            self.set.mkdir(exist_ok=True)
            self._journal = Journal(self.work / "journal.jsonl")
            self._entries = {entry["chunk"]: entry for entry in self._journal.entries}
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._journal.close()
        os.close(self._lock)

    @property
    def begun(self) -> bool:
        """Whether an earlier start left anything."""
        return bool(self._entries)

    def finished(self, chunk: int, identity: str) -> dict[str, Any] | None:
        """The journal's entry of a chunk of studies, where its shard is there and these studies made it."""
        entry = self._entries.get(chunk)
        if entry is None or entry["id"] != identity:
            return None
        file = self.set / entry["shard"]["name"]
        return entry if file.is_file() and file.stat().st_size == entry["shard"]["bytes"] else None

    def begin(self, chunk: int) -> ShardFile:
        """The shard of a chunk, to be filled and given to `end`."""
        return ShardFile(self.set / (shard_name(chunk) + PART))

    def end(
        self, chunk: int, identity: str, shard: ShardFile, rejected: Iterable[Rejection], masked: dict[str, int]
    ) -> dict[str, Any]:
        """Close a shard, put it in its place and journal it. Returns the entry."""
        name = shard_name(chunk)
        entry = {
            "chunk": chunk,
            "id": identity,
            "shard": shard.end(name),
            "rows": shard.rows,
            "rejected": [[r.line, r.key, r.reason] for r in rejected],
            "masked": masked,
        }
        os.replace(shard.path, self.set / name)
        sync_folder(self.set)
        self._journal.append(entry)
        return entry

    def finish(self, catalogue: Catalogue, rejected: list[Rejection], further: dict[str, Any]) -> None:
        """Write index, manifest and list of rejects, rename the set to OUT, and remove the work folder."""
        wanted = {shard["name"] for shard in catalogue.shards}
        for path in self.set.iterdir():
            if path.name not in wanted:
                path.unlink()
        catalogue.write(self.set, further)
        if rejected:
            list_rejected(rejected, self.set)
        for path in (self.set / "index.parquet", self.set / "manifest.json"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self.set)
        if self.out.exists():
            (self.out / REJECTED).unlink(missing_ok=True)  # of an earlier start, which built nothing
            self.out.rmdir()
        os.rename(self.set, self.out)
        sync_folder(self.out.parent)
        remove_work(self.out)

    def _same_build(self) -> None:
        place = self.work / "about.json"
        if place.exists():
            begun = json.loads(place.read_text(encoding="utf-8"))
            differ = sorted(n for n in begun.keys() | self.about.keys() if begun.get(n) != self.about.get(n))
            if differ:
                raise DataError(
                    f"another build of this output was begun and not finished: {', '.join(differ)} differ from it",
                    "shards made in two ways would be mixed",
                    f"go on with it by giving what it was begun with, or remove the folder {self.work.name} beside the "
                    "output and begin anew",
                )
            return
        aside = place.with_suffix(PART)
        aside.write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, place)


def work_folder(out: Path) -> Path:
    """Where a build of `out` works."""
    return out.parent / f".{out.name}.building"


def remove_work(out: Path) -> None:
    """Remove the work folder of a build that is finished, the lock last."""
    work = work_folder(out)
    for name in ("about.json", "journal.jsonl"):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def already_built(out: Path, identity: str, resume: bool) -> bool:
    """Whether OUT is this very build, finished: so a start that was killed at its very end, or `resume` asks for it.

    Raises: DataError for an OUT that holds anything else, or the same without being asked.
    """
    manifest = out / "manifest.json"
    same = manifest.is_file() and json.loads(manifest.read_bytes()).get("build") == identity
    if same and (resume or work_folder(out).exists()):
        return True
    require_free(out)
    return False


def list_rejected(rejected: Iterable[Rejection], folder: Path) -> None:
    """Write rejected.csv into a folder: aside, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".{folder.name}.{REJECTED}{PART}"  # not in the folder, which may be refused as not empty
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "key", "reason"])
        writer.writerows((r.line, r.key, r.reason) for r in sorted(rejected, key=lambda r: r.line))
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / REJECTED)


def _locked(work: Path) -> int:
    """An open lock that the system releases when this process ends, however it ends."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        place = work / "lock"
        try:
            handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # removed by a build that just finished
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise DataError(
                "another process is building this output now",
                "two builds would write the same shards",
                "wait for it, end it, or name another --out",
            ) from None
        except OSError:
            os.close(handle)
            raise DataError(
                "the file system of the output has no file locks",
                "two builds could write the same shards unnoticed",
                "build on another file system, then move the finished folder",
            ) from None
        if place.exists() and os.path.samestat(os.fstat(handle), os.stat(place)):
            return handle
        os.close(handle)
