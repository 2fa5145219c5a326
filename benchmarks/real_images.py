"""Public real images as shard sets: `python -m benchmarks.real_images --data ROOT`.

- `xray`: Hannover chest radiographs, each with a report of its facts (benchmarks.real_data).
- `pneumonia`: PneumoniaMNIST, 28 x 28, a label an image and no text.
- `slices`: axial slices of OpenKBP's head-and-neck CTs, ten a scan, lung, soft tissue and bone as red, green and blue;
  labels say which organs are in the slice, from the label maps beside the scans. An organ that nobody contoured in a
  scan is unknown in all its slices.
- `patches`: squares of such slices around the centroid of one organ each, turned by any angle, shifted by up to 12 mm
  along each axis and scaled, so that less can be told by place and outline; labels say which organ, a report says that
  it is in the middle (so far as this puts it there) and what is measured in the patch.

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


def head_neck_scans(root: Path) -> list[tuple[str, str]]:
    """Name and split."""
    with (root / "openkbp_ct" / "pairs.csv").open(newline="", encoding="utf-8") as file:
        scans = [(row["volume"], row["split"] == "train") for row in csv.DictReader(file)]
    return [(name, "test" if not t else "val" if i % 7 == 0 else "train") for i, (name, t) in enumerate(scans)]


def save(hu: np.ndarray, path: Path) -> None:
    """A plane in HU as a picture of three windows."""
    from PIL import Image

    channels = [np.clip((hu - low) / (high - low), 0, 1) * 255 for low, high in WINDOWS]
    Image.fromarray(np.stack(channels, -1).round().astype(np.uint8)).save(path)


def slices(root: Path, folder: Path) -> Iterator[Row]:
    import nibabel as nib

    base = root / "openkbp_ct"
    for name, split in head_neck_scans(root):
        hu = np.asarray(nib.as_closest_canonical(nib.load(base / "ct" / f"{name}.nii.gz")).dataobj)
        seg = np.asarray(nib.as_closest_canonical(nib.load(base / "seg" / f"{name}.nii.gz")).dataobj) % 16
        known = set(np.unique(seg).tolist())
        for z in np.linspace(0, hu.shape[2] - 1, SLICES + 2)[1:-1].round().astype(int):
            plane = np.flip(hu[:, :, z].T, 0).astype(np.float32)  # anterior up, the patient's right on the left
            if np.ptp(plane.clip(WINDOWS[0][0], WINDOWS[-1][1])) == 0:
                continue  # outside the body: the collection is cropped to it, and filled with air
            key = f"{name}-{z}"
            save(plane, folder / f"{key}.png")
            there = {
                organ: str(int((seg[:, :, z] == code).any())) if code in known else "" for code, organ in ORGANS.items()
            }
            yield {"id": key, "patient": name, "image": str(folder / f"{key}.png"), "split": split, **there}


PATCH_ORGANS = {"brainstem": (1,), "spinal_cord": (2,), "parotid": (3, 4), "larynx": (6,), "mandible": (7,)}
PATCHES, SIDE, PIXELS, SHIFT = 4, 96.0, 64, 12.0  # of each organ in a scan; mm; pixels; mm
AIR = ((0.02, "There is no air."), (0.2, "A part of it is air."), (1.0, "Much of it is air."))
BONE = ((0.03, "There is hardly any bone."), (0.12, "A part of it is bone."), (1.0, "Much of it is bone."))


def patches(root: Path, folder: Path) -> Iterator[Row]:
    import nibabel as nib

    for number, (name, split) in enumerate(head_neck_scans(root)):
        image = nib.as_closest_canonical(nib.load(root / "openkbp_ct" / "ct" / f"{name}.nii.gz"))
        hu, spacing = np.asarray(image.dataobj), image.header.get_zooms()[:2]
        seg = np.asarray(nib.as_closest_canonical(nib.load(root / "openkbp_ct" / "seg" / f"{name}.nii.gz")).dataobj)
        for organ, codes in PATCH_ORGANS.items():
            rng = np.random.default_rng([number, codes[0]])
            contoured = [code for code in codes if (seg % 16 == code).any()]
            if not contoured:
                continue
            mask = seg % 16 == rng.choice(contoured)
            heights = np.flatnonzero(mask.any((0, 1)))
            for z in sorted(rng.choice(heights, min(PATCHES, len(heights)), replace=False)):
                patch = turned(hu[:, :, z].astype(np.float32), np.argwhere(mask[:, :, z]).mean(0), spacing, rng)
                key = f"{name}-{organ}-{z}"
                save(patch, folder / f"{key}.png")
                yield {"id": key, "patient": name, "image": str(folder / f"{key}.png"), "split": split,
                       "report": patch_report(organ, patch),
                       **{one: str(int(one == organ)) for one in PATCH_ORGANS}}  # fmt: skip


def turned(plane: np.ndarray, centre: np.ndarray, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """A square of a plane around `centre` (voxels), at an angle, a shift and a scale of chance; air outside."""
    from scipy.ndimage import map_coordinates

    angle, scale, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25), rng.uniform(-SHIFT, SHIFT, 2)
    ticks = (np.arange(PIXELS) + 0.5) / PIXELS - 0.5
    square = np.stack(np.meshgrid(ticks, ticks, indexing="ij")).reshape(2, -1) * SIDE * scale
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = (turn @ square + shift[:, None]) / np.asarray(spacing)[:, None] + centre[:, None]
    return map_coordinates(plane, places, order=1, cval=-1000.0).reshape(PIXELS, PIXELS)


def patch_report(organ: str, patch: np.ndarray) -> str:
    shares = ((AIR, (patch < -400).mean()), (BONE, (patch > 250).mean()))
    said = [next(words for limit, words in steps if share <= limit) for steps, share in shares]
    metal = ["There is metal."] if (patch > 2000).any() else []
    where = "parotid gland" if organ == "parotid" else organ.replace("_", " ")
    return " ".join([f"The {where} is in the middle.", *said, *metal])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or the code of the build that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_images", description="Public real images as shard sets."
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
        ("patches", patches, tuple(PATCH_ORGANS), ["--split-column", "split", "--text-columns", "report"]),
    )
    for name, table, labels, more in sets:
        with tempfile.TemporaryDirectory() as pictures:
            words = ["--workers", str(args.workers), *more]
            if code := build_set(args.out / name, table(args.data, Path(pictures)), labels, words):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
