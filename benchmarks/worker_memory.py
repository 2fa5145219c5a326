"""Whether a worker's memory stays flat over 10,000 samples: `python -m benchmarks.worker_memory`.

Streams small volumes and JPEGs through one worker process and reads its resident memory (private and shared pages in
turn) from /proc as batches come. Reported from the 1,000th sample on, when pools and caches are filled.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.whole_stream import WINDOWS, jpeg_shards, volume_shards


def private_mb(pid: int) -> float:
    """Memory that is this process's own, in MB: what grows when something leaks."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean", "Private_Dirty")):
            total += int(line.split()[1])
    return total / 1024


def workers_of(pid: int) -> list[int]:
    """Children of a process, youngest last."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return sorted(found)


def watch(stream: Any, samples: int, batch: int) -> list[tuple[int, float]]:
    """(samples so far, MB) about every 250 samples."""
    import os

    seen, taken = [], 0
    for batch_number, _ in enumerate(stream):
        taken += batch
        if batch_number % max(1, 250 // batch) == 0 and (workers := workers_of(os.getpid())):
            seen.append((taken, max(private_mb(w) for w in workers)))
        if taken >= samples:
            break
    return seen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker_memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="samples to stream (default: 10000)")
    args = parser.parse_args(argv)
    import torch

    from data_shards.preprocess import Geometry, PlanarGeometry, View
    from data_shards.stream import Stream, UnitPolicy
    from encoders.tokenize import BPE

    torch.set_num_threads(1)
    print(machine())
    batch = 8
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("volume", "jpeg"):
            if kind == "volume":
                shards = volume_shards(Path(scratch) / kind, 200, (64, 80, 80))
                geometry: Any = Geometry(spacing_mm=(3.0, 1.5, 1.5), windows=WINDOWS)
                view = View("random", (48, 64, 64))
            else:
                shards, geometry, view = jpeg_shards(Path(scratch) / kind, 200), PlanarGeometry(), View()
            stream = Stream(
                shards, shards.rows("train"), geometry, view, BPE(256), UnitPolicy(sentences=True),
                batch_size=batch, seed=0, steps=-(-args.samples // batch), workers=1,
            )  # fmt: skip
            seen = [(n, mb) for n, mb in watch(stream, args.samples, batch) if n >= min(1000, args.samples // 4)]
            first = float(np.median([mb for _, mb in seen[:5]]))
            last = float(np.median([mb for _, mb in seen[-5:]]))
            top = max(mb for _, mb in seen)
            print(
                f"{kind}: private memory of the worker {first:.0f} MB at {seen[0][0]} samples, {last:.0f} MB at "
                f"{seen[-1][0]} ({100 * (last / first - 1):+.1f} %), largest {top:.0f} MB"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
