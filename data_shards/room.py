"""How many batches the loader's workers may hold: as many as shared memory and the machine have room for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from data_shards.errors import DataError

SHARED_MEMORY, MEMORY = Path("/dev/shm"), Path("/proc/meminfo")
OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
AHEAD_BYTES = 512 << 20  # images that workers may hold ready, all together, beyond a batch each
MOST_AHEAD = 4  # batches a worker
IN_FLIGHT = 2  # batches that no worker holds any more: the one in use and the next


class Room(NamedTuple):
    """Bytes that are free for batches, where, and how many copies of a batch may be there at once."""

    free: int
    where: str
    copies: int = 1

    @classmethod
    def measured(cls, pinned: bool) -> Room | None:
        """Shared memory, through which workers hand batches over, or the memory that the machine or this process's
        control group (a SLURM job's, a container's) has left, where less of that is; a pinned batch is there twice for
        a while. None where nothing is told."""
        found = []
        if SHARED_MEMORY.is_dir():
            found.append(cls(shutil.disk_usage(SHARED_MEMORY).free, str(SHARED_MEMORY)))
        left = [size for size in (_available(), _left_by_group()) if size is not None]
        if left:
            found.append(cls(min(left), "memory", 2 if pinned else 1))
        return min(found, key=lambda room: room.free // room.copies, default=None)

    def said(self, ranks: int) -> str:
        half = ", half of it for pinned copies" if self.copies == 2 else ""
        return f"{self.where} has {told(self.free)} free{half}{f', for {ranks} ranks' if ranks > 1 else ''}"


def _available() -> int | None:
    """Bytes of memory that Linux could give."""
    lines = MEMORY.read_text(encoding="ascii").splitlines() if MEMORY.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _left_by_group() -> int | None:
    """Bytes below the limits of this process's control group (version 2) and of those that it is in."""
    try:
        own = next(line[3:] for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::"))
        left = []
        for folder in [one := GROUPS / own.lstrip("/"), *one.parents]:
            limit = folder / "memory.max"
            if limit.is_file() and (most := limit.read_text().strip()) != "max":
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cache = int(stat.get("inactive_file", 0))  # given back when asked for
                left.append(max(0, int(most) - int((folder / "memory.current").read_text()) + cache))
    except (OSError, StopIteration, ValueError):
        return None
    return min(left, default=None)


class Workers(NamedTuple):
    """Processes, and batches that each may have ready or in the making."""

    number: int
    ahead: int


def fitting(asked: int, batch_bytes: int, ranks: int, room: Room | None) -> Workers:
    """At most `asked` workers, whose batches and those in use fit into what is free, shared by the ranks of this
    machine. Batches are the same for any number.

    Raises:
        DataError: there is no room for one worker's.
    """
    if not asked:
        return Workers(0, 1)
    ahead = min(MOST_AHEAD, max(1, AHEAD_BYTES // (batch_bytes * asked)))
    if room is None:
        return Workers(asked, ahead)
    most = room.free // room.copies // ranks // batch_bytes - IN_FLIGHT
    if most < 1:
        more = " (docker run --shm-size)" if room.where == str(SHARED_MEMORY) else ""
        raise DataError(
            f"the images of a batch take {told(batch_bytes)}, and {room.said(ranks)}; a worker needs "
            f"{1 + IN_FLIGHT} batches",
            "it would be killed when that is full",
            f"a smaller train.batch_size, --data.workers 0, or more of it{more}",
        )
    number = min(asked, most)
    return Workers(number, min(ahead, most // number))


def told(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"
