"""How fast shards are built, against a plain loop that reads and writes alone: `python -m benchmarks.build_speed`.

Plain: nibabel reads, blosc2 compresses with the settings of our shards, a file is written; no orientation, check, text,
hash or index. Ours: `data_shards.build`, whole, in one process. One thread each; they take turns; seconds are those of
the processor (per core, whatever else the machine does), wall-clock ones beside them, and ratios are of medians. Size:
our shards, index and manifest, over the .nii.gz that nibabel writes of the same int16 voxels.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

from benchmarks.machine import machine
from benchmarks.volumes import nifti_files

REPORT = "FINDINGS: The lungs are clear. No pleural effusion.\n\nIMPRESSION: No acute disease."


def plain(files: Sequence[Path], folder: Path, defaults: bool = False) -> None:
    """Read and write, nothing else. defaults: with blosc2's own settings."""
    import blosc2
    import nibabel

    from data_shards.shard_write import encode_volume

    folder.mkdir()
    for i, file in enumerate(files):
        array = np.asarray(nibabel.load(file).dataobj).astype(np.int16)  # type: ignore[attr-defined]
        array = np.ascontiguousarray(array)
        frame = bytes(blosc2.asarray(array, cparams={"nthreads": 1}).to_cframe()) if defaults else encode_volume(array)
        (folder / f"{i}.b2nd").write_bytes(frame)


def ours(table: Path, folder: Path) -> None:
    from data_shards.build import main

    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        code = main(["--source", str(table), "--out", str(folder), "--patient-column", "id"])
    assert code == 0


def write_table(files: Sequence[Path], path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "report"])
        writer.writerows([f"study{i}", file.absolute(), REPORT] for i, file in enumerate(files))
    return path


def compare(name: str, files: Sequence[Path], scratch: Path, repeats: int) -> None:
    import nibabel

    table = write_table(files, scratch / f"{name}.csv")
    out = scratch / "made"
    ways: dict[str, Callable[[], None]] = {
        "plain loop, our codec settings": lambda: plain(files, out),
        "plain loop, blosc2's defaults": lambda: plain(files, out, defaults=True),
        "data_shards.build": lambda: ours(table, out),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    wall: dict[str, list[float]] = {way: [] for way in ways}
    sizes: dict[str, int] = {}
    for repeat in range(repeats + 1):  # the first is for imports and the page cache
        for way, run in ways.items():
            began, clock = time.process_time(), time.perf_counter()
            run()
            if repeat:
                seconds[way].append(time.process_time() - began)
                wall[way].append(time.perf_counter() - clock)
            sizes[way] = sum(path.stat().st_size for path in out.iterdir())
            shutil.rmtree(out)
        print(f"\r  {name}: {repeat}/{repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    again = scratch / "again.nii.gz"
    zipped = voxels = 0
    for file in files:
        image = nibabel.load(file)
        array = np.asarray(image.dataobj).astype(np.int16)  # type: ignore[attr-defined]
        nibabel.save(nibabel.Nifti1Image(array, image.affine), again)  # type: ignore[attr-defined]
        zipped, voxels = zipped + again.stat().st_size, voxels + array.size
    print(f"\n{name}: {len(files)} volumes, {voxels / 1e6:.0f} M voxels, {repeats} runs each")
    reference, clock = (statistics.median(of["plain loop, our codec settings"]) for of in (seconds, wall))
    for way, runs in seconds.items():
        middle = statistics.median(runs)
        speed = f"{reference / middle:.2f} (wall {clock / statistics.median(wall[way]):.2f})"
        print(
            f"  {way:32} {middle:7.2f} s ({min(runs):.2f}..{max(runs):.2f})  {voxels / middle / 1e6:6.1f} M voxels/s  "
            f"speed {speed}  bytes / .nii.gz {sizes[way] / zipped:.3f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build_speed", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder with misc_ct (default: phantoms alone)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each way (default: 5)")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("VOXCLIP_SALT", "benchmark")
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for name, files in nifti_files(Path(folder) / "volumes", args.data, phantoms=1).items():
            if files:
                compare(name, files, Path(folder), args.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
