"""Cubes of public real CTs around one organ each, as shards: `python -m benchmarks.real_organs --data ROOT`.

The volumes' counterpart of the set `patches` of benchmarks.real_images: cubes of OpenKBP's head-and-neck CTs around a
voxel of an organ, turned by any angle about any axis, shifted by up to 12 mm along each and scaled, so that less can be
told by place and outline. Labels say which organ, a report says that it is in the middle (so far as this puts it there)
and what is measured in the cube. Splits are by patient, as there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.real_data import build_set
from benchmarks.real_images import PATCH_ORGANS, SHIFT, SIDE, Row, head_neck_scans, patch_report

CUBES, VOXELS = 4, 32  # of each organ in a scan; along an edge


def cubes(root: Path, folder: Path) -> Iterator[Row]:
    import nibabel as nib

    for number, (name, split) in enumerate(head_neck_scans(root)):
        image = nib.as_closest_canonical(nib.load(root / "openkbp_ct" / "ct" / f"{name}.nii.gz"))
        hu, spacing = np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.header.get_zooms()[:3])
        seg = np.asarray(nib.as_closest_canonical(nib.load(root / "openkbp_ct" / "seg" / f"{name}.nii.gz")).dataobj)
        for organ, codes in PATCH_ORGANS.items():
            rng = np.random.default_rng([number, codes[0], 3])
            places = np.argwhere(np.isin(seg % 16, codes))
            for i in range(CUBES if len(places) else 0):
                cube = turned_cube(hu, places[rng.integers(len(places))], spacing, rng)
                key = f"{name}-{organ}-{i}"
                path = folder / f"{key}.nii.gz"
                nib.save(nib.Nifti1Image(cube.round().astype(np.int16), np.diag([*[SIDE / VOXELS] * 3, 1])), path)
                yield {"id": key, "patient": name, "image": str(path), "split": split,
                       "report": patch_report(organ, cube),
                       **{one: str(int(one == organ)) for one in PATCH_ORGANS}}  # fmt: skip


def turned_cube(hu: np.ndarray, centre: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A cube of a scan around `centre` (voxels), at a rotation, a shift and a scale of chance; air outside."""
    from scipy.ndimage import map_coordinates
    from scipy.spatial.transform import Rotation

    turn = Rotation.random(None, rng).as_matrix()
    scale, shift = rng.uniform(0.8, 1.25), rng.uniform(-SHIFT, SHIFT, 3)
    ticks = (np.arange(VOXELS) + 0.5) / VOXELS - 0.5
    grid = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij")).reshape(3, -1) * SIDE * scale
    places = (turn @ grid + shift[:, None]) / spacing[:, None] + centre[:, None]
    return map_coordinates(hu, places, order=1, cval=-1000.0).reshape(VOXELS, VOXELS, VOXELS)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or the code of the build that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_organs", description="Cubes of public real CTs around one organ each."
    )
    add = parser.add_argument
    add("--data", required=True, type=Path, metavar="ROOT", help="folder of the collections")
    add("--out", default=Path("shards/organs"), type=Path, metavar="DIR", help="default: shards/organs")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)")
    args = parser.parse_args(argv)
    words = ["--split-column", "split", "--text-columns", "report", "--workers", str(args.workers)]
    with tempfile.TemporaryDirectory() as folder:
        return build_set(args.out, cubes(args.data, Path(folder)), tuple(PATCH_ORGANS), words)


if __name__ == "__main__":
    sys.exit(main())
