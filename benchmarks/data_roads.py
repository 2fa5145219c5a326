"""How fast volumes reach a model, ours against MONAI as Merlin uses it: `python -m benchmarks.data_roads`.

First epoch, from .nii.gz: MONAI's LoadImage, EnsureChannelFirst, Orientation RAS, Spacing (1.5, 1.5, 3 mm), HU -1000 to
1000 scaled to 0..1, pad and centre crop to 224 x 224 x 160 (merlin-vlm's released transform); for the crop rows, a
random 96^3 crop in place of the centre crop. Ours: the same view of a shard, at the file's own spacing (resampled
while reading) and, as the build can store it, at the model's spacing; with the check of the whole member, as in a first
epoch, and without it. Later epochs: MONAI's PersistentDataset of the same transform, written before the clock starts,
against our shard at the model's spacing, warm and with the page cache dropped before each read; bytes are those of the
files each way has to read for one volume.

One thread, one process: a rate per core. Every volume is read by each way in turn and the order rotates; the ratio is
taken volume by volume and its median is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.volumes import CROP, MODEL_SIZE, MODEL_SPACING, forget, nifti_files, place, shards_of

Way = Callable[[int], Any]  # volume number -> array or tensor


def monai_transform(crop: bool) -> Any:
    """merlin-vlm's image transform (sizes in MONAI's order: x, y, z)."""
    from monai import transforms as t

    size, (z, y, x) = tuple(reversed(MODEL_SIZE)), MODEL_SPACING
    last = (
        [
            t.SpatialPadd("image", tuple(reversed(CROP))),
            t.RandSpatialCropd("image", tuple(reversed(CROP)), random_size=False),
        ]
        if crop
        else [t.SpatialPadd("image", size), t.CenterSpatialCropd("image", size)]
    )
    return t.Compose(
        [
            t.LoadImaged("image"),
            t.EnsureChannelFirstd("image"),
            t.Orientationd("image", axcodes="RAS"),
            t.Spacingd("image", pixdim=(x, y, z), mode="bilinear"),
            t.ScaleIntensityRanged("image", -1000, 1000, 0.0, 1.0, clip=True),
            *last,
        ]
    )


def ours(shards: Any, crop: bool, first: bool = False) -> Way:
    """The view of volume i through the reader and arithmetic of the training stream. first: as in a first epoch, with
    the checksum of the whole member; later ones decode only the blocks that a crop touches."""
    from data_shards.preprocess import Geometry, View, apply_view

    geometry = Geometry(spacing_mm=MODEL_SPACING, windows=((-1000.0, 1000.0),))
    view = View("random", CROP) if crop else View("centre", MODEL_SIZE)
    rng = np.random.Generator(np.random.Philox(0))

    def read(i: int) -> np.ndarray:
        if first:
            shards._checked.clear()
        source, meta = shards.scan(i, 0)
        return apply_view(source, meta, geometry, view, rng)

    return read


def interleave(ways: dict[str, Way], volumes: int, repeats: int, before: dict[str, Callable[[int], None]]) -> dict:
    """Seconds [volume][repeat] of each way."""
    names = list(ways)
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in range(volumes)] for name in names}
    for repeat in range(repeats):
        for i in range(volumes):
            turn = (repeat + i) % len(names)
            for name in names[turn:] + names[:turn]:
                before.get(name, lambda i: None)(i)
                began = time.perf_counter()
                ways[name](i)
                seconds[name][i].append(time.perf_counter() - began)
        print(f"\r  repeat {repeat + 1}/{repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def tell(title: str, seconds: dict[str, list[list[float]]], reference: str) -> None:
    """Median seconds a volume of each way, and the median over volumes of reference / way."""
    print(f"\n{title}")
    per_volume = {name: [statistics.median(runs) for runs in rows] for name, rows in seconds.items()}
    for name, medians in per_volume.items():
        ratios = [theirs / mine for theirs, mine in zip(per_volume[reference], medians, strict=True)]
        span = f"{min(ratios):.1f}..{max(ratios):.1f}"
        median = statistics.median(medians)
        print(
            f"  {name:36} {1000 * median:9.1f} ms  {1 / median:8.2f} volumes/s  "
            f"{statistics.median(ratios):7.1f} x ({span})"
        )


def transformed(transform: Any, items: Sequence[dict[str, str]], i: int) -> Any:
    return transform(dict(items[i]))


def compare(name: str, files: Sequence[Path], folder: Path, repeats: int) -> None:
    import torch
    from monai.data import PersistentDataset

    native = shards_of(files, folder / f"{name}-native")
    stored = shards_of(files, folder / f"{name}-stored", MODEL_SPACING)
    items = [{"image": str(file)} for file in files]
    n = len(files)
    for crop in (True, False):
        ways: dict[str, Way] = {
            "MONAI from .nii.gz": partial(transformed, monai_transform(crop), items),
            "ours, own spacing, with the check": ours(native, crop, first=True),
            "ours, own spacing": ours(native, crop),
            "ours, 3 x 1.5 x 1.5, with the check": ours(stored, crop, first=True),
            "ours, 3 x 1.5 x 1.5": ours(stored, crop),
        }
        what = "random 96^3 crop" if crop else "224 x 224 x 160"
        tell(f"{name}: first epoch, {what}, {n} volumes", interleave(ways, n, repeats, {}), "MONAI from .nii.gz")

    cache = folder / f"{name}-persistent"
    kept = PersistentDataset(items, monai_transform(False), cache_dir=cache)
    before = set(cache.iterdir()) if cache.exists() else set()
    files_of = []
    for i in range(n):
        kept[i]
        new = set(cache.iterdir()) - before
        files_of.append(sorted(new))
        before |= new
    if not all(files_of):  # written by an earlier run: matched by the hash MONAI names them with
        files_of = [[cache / f"{kept.hash_func(item).decode()}.pt"] for item in items]
    tars = sorted(stored.store.folder.glob("*.tar"))

    def drop_pt(i: int) -> None:
        forget(*files_of[i])

    def drop_tar(i: int) -> None:
        forget(*tars)

    read = ours(stored, False)
    later: dict[str, Way] = {
        "MONAI PersistentDataset": lambda i: kept[i]["image"].sum(),
        "ours": lambda i: torch.from_numpy(read(i)).sum(),
    }
    tell(f"{name}: later epochs, 224 x 224 x 160, warm", interleave(later, n, repeats, {}), "MONAI PersistentDataset")
    cold = interleave(later, n, repeats, {"MONAI PersistentDataset": drop_pt, "ours": drop_tar})
    tell(f"{name}: later epochs, 224 x 224 x 160, cold page cache", cold, "MONAI PersistentDataset")
    theirs = [sum(f.stat().st_size for f in group) for group in files_of]
    mine = [place(stored, i)[2] for i in range(n)]
    ratio = statistics.median(m / t for m, t in zip(mine, theirs, strict=True))
    print(
        f"  bytes read a volume: MONAI {statistics.median(theirs) / 1e6:.1f} MB, ours "
        f"{statistics.median(mine) / 1e6:.1f} MB, ratio {ratio:.2f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_roads", description="Volumes to a model's input, ours against MONAI."
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder with misc_ct (default: phantoms alone)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where shards and caches go (default: temporary)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed reads of each volume (default: 5)")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        for name, files in nifti_files(folder, args.data).items():
            if files:
                compare(name, files, folder, args.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
