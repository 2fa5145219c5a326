"""How many batches the loader's workers may hold: as many as shared memory and the machine have room for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from data_shards.errors import DataError

SHARED_MEMORY, MEMORY = Path("/dev/shm"), Path("/proc/meminfo")
AHEAD_BYTES = 512 << 20  # images that workers may hold ready, all together, beyond a batch each
MOST_AHEAD = 4  # batches a worker
IN_FLIGHT = 2  # batches that no worker holds any more: the one in use and the next


class Room(NamedTuple):
    """Bytes that are free for batches, and where."""

    free: int
    where: str

    @classmethod
    def measured(cls, pinned: bool) -> Room | None:
        """Shared memory, through which workers hand batches over, or the machine's memory where less of that is left;
        a pinned batch is there twice for a while. None where neither is told."""
        found = []
        if SHARED_MEMORY.is_dir():
            found.append(cls(shutil.disk_usage(SHARED_MEMORY).free, str(SHARED_MEMORY)))
        if MEMORY.is_file():
            lines = MEMORY.read_text(encoding="ascii").splitlines()
            available = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
            found += [cls(size // (2 if pinned else 1), "memory") for size in available]
        return min(found, default=None)


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
    most = room.free // ranks // batch_bytes - IN_FLIGHT
    if most < 1:
        raise DataError(
            f"the images of a batch take {told(batch_bytes)}, and {room.where} has {told(room.free)} free for "
            f"{'the' if ranks == 1 else f'{ranks} ranks and their'} workers",
            "workers hand batches over through it, and would be killed when it is full",
            "a smaller train.batch_size, --data.workers 0, or more shared memory (docker run --shm-size)",
        )
    number = min(asked, most)
    return Workers(number, min(ahead, most // number))


def told(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"
