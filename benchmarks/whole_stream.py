"""What exactness costs: our whole stream against a loop written for one purpose: `python -m benchmarks.whole_stream`.

The stream reads by index, checks, decodes, crops, windows, parses, tokenises, packs and collates. The loop decodes and
transforms the same samples and does nothing else: blosc2 reads the same crop from the same tar by a known offset and
numpy scales it to the same windows; PIL opens the same JPEG bytes, resizes and crops them, numpy normalises. No text,
no check, no labels, no order. In a first epoch the stream also checks every volume whole (crc32);
later ones decode only the blocks of the crop. Both in this process, one thread; runs are interleaved, medians compared.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.volumes import place

BATCH, WHOLE, CROP = 8, (160, 192, 192), (96, 96, 96)
WINDOWS = ((-1000.0, 200.0), (-160.0, 240.0), (-450.0, 1050.0))
REPORT = (
    "The lungs are clear. No pleural effusion. The heart is of normal size. A cyst of 2.5 cm lies in the left kidney. "
    "No enlarged lymph nodes. The liver is unremarkable. No ascites. Mild degenerative changes of the spine."
)


def volume_shards(folder: Path, studies: int, shape: tuple[int, int, int]) -> Any:
    """Phantom-like volumes (smooth shapes with noise), each with a report of its own."""
    from scipy.ndimage import gaussian_filter

    from data_shards.schema import Scan, Study, Texts
    from data_shards.shard_set import ShardSet, ShardWriter

    with ShardWriter(folder) as writer:
        for i in range(studies):
            rng = np.random.Generator(np.random.Philox(i))
            smooth = gaussian_filter(rng.normal(0, 1, shape).astype(np.float32), 6) * 8000
            array = np.clip(np.rint(smooth + rng.normal(0, 10, shape)), -1024, 3071).astype(np.int16)
            scan = Scan(array=array, spacing_mm=(3.0, 1.5, 1.5))
            texts = Texts(findings=f"{REPORT} Nodule of {i} mm.", impression="No acute finding.")
            writer.write(Study(f"{i:016x}", f"{i:016x}", "train", (scan,), texts))
    return ShardSet.open(folder)


def jpeg_shards(folder: Path, studies: int) -> Any:
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    from data_shards.schema import Scan, Study, Texts
    from data_shards.shard_set import ShardSet, ShardWriter

    with ShardWriter(folder) as writer:
        for i in range(studies):
            rng = np.random.Generator(np.random.Philox(i))
            grey = np.clip(gaussian_filter(rng.normal(0, 1, (512, 480)), 8) * 900 + 128, 0, 255).astype(np.uint8)
            out = io.BytesIO()
            Image.fromarray(grey).convert("RGB").save(out, "JPEG", quality=90)
            scan = Scan(image=out.getvalue(), ext="jpg", modality="CR", unit="arbitrary")
            writer.write(Study(f"{i:016x}", f"{i:016x}", "train", (scan,), Texts(report=f"{REPORT} Image {i}.")))
    return ShardSet.open(folder)


def volume_loop(shards: Any, rows: Sequence[int], size: tuple[int, int, int], batch: int) -> Iterator[np.ndarray]:
    """Crop, window, stack: nothing else."""
    import blosc2

    blosc2.set_nthreads(1)
    places = [place(shards, row) for row in rows]
    rng = np.random.default_rng(0)
    for start in range(0, len(rows), batch):
        images = np.empty((batch, len(WINDOWS), *size), np.float32)
        for b in range(batch):
            tar, offset, _ = places[start + b]
            volume = blosc2.open(str(tar), mode="r", offset=offset)
            at = [int(rng.integers(0, n - m + 1)) for n, m in zip(volume.shape, size)]
            crop = volume[tuple(slice(a, a + m) for a, m in zip(at, size))].astype(np.float32)
            for c, (low, high) in enumerate(WINDOWS):
                out = images[b, c]
                np.subtract(crop, low, out=out)
                out *= 2 / (high - low)
                out -= 1
                np.clip(out, -1, 1, out=out)
        yield images


def jpeg_loop(shards: Any, rows: Sequence[int], geometry: Any, batch: int) -> Iterator[np.ndarray]:
    """Open, resize the shorter side, centre crop, normalise, stack: nothing else."""
    from PIL import Image

    places = [place(shards, row) for row in rows]
    files = {tar: os.open(tar, os.O_RDONLY) for tar in {tar for tar, _, _ in places}}
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (geometry.mean, geometry.std))
    height, width = geometry.size
    for start in range(0, len(rows), batch):
        images = np.empty((batch, 3, height, width), np.float32)
        for b in range(batch):
            tar, offset, size = places[start + b]
            image: Any = Image.open(io.BytesIO(os.pread(files[tar], size, offset)))
            w, h = image.size
            scale = height / min(w, h)
            image = image.resize((round(w * scale), round(h * scale)), Image.Resampling.BICUBIC)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            x = np.asarray(image.crop((left, top, left + width, top + height)).convert("RGB"), np.float32)
            images[b] = (x.transpose(2, 0, 1) / 255 - mean) / std
        yield images
    for handle in files.values():
        os.close(handle)


def measure(ways: dict[str, Callable[[], Iterator[Any]]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        names = list(ways) if repeat % 2 else list(reversed(ways))
        for name in names:
            began = time.perf_counter()
            for _ in ways[name]():
                pass
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ways_of(kind: str, folder: Path, studies: int) -> tuple[int, dict[str, Callable[[], Iterator[Any]]]]:
    """Samples a pass, and the ways to read them."""
    from data_shards.preprocess import Geometry, PlanarGeometry, View
    from data_shards.stream import Stream, UnitPolicy
    from encoders.tokenize import BPE

    geometry: Any = PlanarGeometry()
    view, shards = View(), jpeg_shards(folder, studies) if kind == "jpeg" else volume_shards(folder, studies, WHOLE)
    rows, tokenize = shards.rows("train"), BPE(256)
    loop = partial(jpeg_loop, shards, rows, geometry, BATCH)
    if kind == "volume":
        geometry, view = Geometry(spacing_mm=(3.0, 1.5, 1.5), windows=WINDOWS), View("random", CROP)
        loop = partial(volume_loop, shards, rows, CROP, BATCH)

    checking = shards.open(folder, verify="always")

    def stream(policy: UnitPolicy, first: bool) -> Iterator[Any]:
        opened = checking if first else shards
        steps = len(rows) // BATCH
        return iter(Stream(opened, rows, geometry, view, tokenize, policy, batch_size=BATCH, seed=0, steps=steps))

    ways: dict[str, Callable[[], Iterator[Any]]] = {"loop": loop}
    for name, policy in {"reports": UnitPolicy(), "reports and sentences": UnitPolicy(sentences=True)}.items():
        ways[f"{name}, first epoch"] = partial(stream, policy, True)
        ways[name] = partial(stream, policy, False)
    return len(rows), ways


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_stream", description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="timed passes of each way (default: 7)")
    parser.add_argument("--studies", type=int, default=64, metavar="N", help="samples a pass (default: 64)")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("volume", "jpeg"):
            count, ways = ways_of(kind, Path(scratch) / kind, args.studies)
            seconds = measure(ways, args.repeats)
            base = statistics.median(seconds["loop"])
            print(f"\n{kind}: {count} samples a pass, batches of {BATCH}")
            for name, runs in seconds.items():
                median = statistics.median(runs)
                print(f"  {name:36} {count / median:8.1f} samples/s   stream / loop {base / median:5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
