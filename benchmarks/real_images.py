"""Public real images of three kinds as shard sets: `python -m benchmarks.real_images --data ROOT`.

- `xray`: Hannover chest radiographs, each with a report of its facts (benchmarks.real_data).
- `pneumonia`: PneumoniaMNIST, 28 x 28, a label an image and no text.
- `slices`: axial slices of OpenKBP's head-and-neck CTs, ten a scan, lung, soft tissue and bone as red, green and blue;
  labels say which organs are in the slice, from the label maps beside the scans. An organ that nobody contoured in a
  scan is unknown in all its slices.

Labels become captions at load time (`public_images` of data_shards.caption_templates, a sentence a label;
`benchmarks/real_images_captions.yaml`, one caption for some of them, as UniMed-CLIP's); `public_images` is the task of
all labels together. Splits are by patient: OpenKBP's 33 validation scans are `test`, every seventh of its training
scans is `val`.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.real_data import XRAY_LABELS, build_set, xray_table

ORGANS = {1: "brainstem", 2: "spinal_cord", 3: "right_parotid", 4: "left_parotid", 6: "larynx", 7: "mandible"}
WINDOWS = ((-1000.0, 200.0), (-160.0, 240.0), (-100.0, 1000.0))
SLICES = 10
Row = dict[str, str]


def xrays(root: Path, folder: Path) -> Iterator[Row]:
    for row in xray_table(root):
        yield {**row, "image": str((root / row["image"]).resolve())}


def pneumonia(root: Path, folder: Path) -> Iterator[Row]:
    from PIL import Image

    with np.load(root / "medmnist" / "pneumoniamnist.npz", allow_pickle=False) as found:
        for split in ("train", "val", "test"):
            images, labels = found[f"{split}_images"], found[f"{split}_labels"]
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                name = f"{split}-{i}"
                Image.fromarray(image).save(folder / f"{name}.png")
                told = {"id": name, "patient": name, "image": str(folder / f"{name}.png"), "split": split}
                yield {**told, "pneumonia": str(int(label.item()))}


def slices(root: Path, folder: Path) -> Iterator[Row]:
    import nibabel as nib
    from PIL import Image

    base = root / "openkbp_ct"
    with (base / "pairs.csv").open(newline="", encoding="utf-8") as file:
        scans = [(row["volume"], row["split"] == "train") for row in csv.DictReader(file)]
    for number, (name, trained) in enumerate(scans):
        split = "test" if not trained else "val" if number % 7 == 0 else "train"
        hu = np.asarray(nib.as_closest_canonical(nib.load(base / "ct" / f"{name}.nii.gz")).dataobj)
        seg = np.asarray(nib.as_closest_canonical(nib.load(base / "seg" / f"{name}.nii.gz")).dataobj) % 16
        known = set(np.unique(seg).tolist())
        for z in np.linspace(0, hu.shape[2] - 1, SLICES + 2)[1:-1].round().astype(int):
            plane = np.flip(hu[:, :, z].T, 0).astype(np.float32)  # anterior up, the patient's right on the left
            channels = [np.clip((plane - low) / (high - low), 0, 1) * 255 for low, high in WINDOWS]
            if np.ptp(plane.clip(WINDOWS[0][0], WINDOWS[-1][1])) == 0:
                continue  # outside the body: the collection is cropped to it, and filled with air
            key = f"{name}-{z}"
            Image.fromarray(np.stack(channels, -1).round().astype(np.uint8)).save(folder / f"{key}.png")
            there = {
                organ: str(int((seg[:, :, z] == code).any())) if code in known else "" for code, organ in ORGANS.items()
            }
            yield {"id": key, "patient": name, "image": str(folder / f"{key}.png"), "split": split, **there}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or the code of the build that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_images", description="Public real images of three kinds as shard sets."
    )
    add = parser.add_argument
    add("--data", required=True, type=Path, metavar="ROOT", help="folder of the collections")
    add("--out", default=Path("shards/images"), type=Path, metavar="DIR", help="default: shards/images")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)")
    args = parser.parse_args(argv)
    by_column = ["--split-column", "split", "--allow-no-text"]
    sets = (
        ("xray", xrays, XRAY_LABELS, ["--text-columns", "report", "--test-fraction", "0.4", "--val-fraction", "0.1"]),
        ("pneumonia", pneumonia, ("pneumonia",), by_column),
        ("slices", slices, tuple(ORGANS.values()), by_column),
    )
    for name, table, labels, more in sets:
        with tempfile.TemporaryDirectory() as pictures:
            words = ["--workers", str(args.workers), *more]
            if code := build_set(args.out / name, table(args.data, Path(pictures)), labels, words):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
