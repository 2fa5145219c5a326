"""Volumes that the data benchmarks share: real CTs, a phantom of 512 x 512 x 240, and shard sets made from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PHANTOM_SHAPE = (240, 512, 512)  # D,H,W
PHANTOM_SPACING = (1.5, 0.75, 0.75)  # mm
NOISE_HU = 12.0
MODEL_SPACING, MODEL_SIZE, CROP = (3.0, 1.5, 1.5), (160, 224, 224), (96, 96, 96)  # Merlin's grid, and a crop of it


def phantom_volume(seed: int = 0) -> np.ndarray:
    """A phantom study enlarged to the matrix of a clinical CT, with the noise of one: int16 HU, D,H,W."""
    from scipy.ndimage import zoom

    from data_shards.phantom.study import generate

    small = generate(0, seed).scans[0].array
    assert small is not None
    large = zoom(small.astype(np.float32), [n / m for n, m in zip(PHANTOM_SHAPE, small.shape)], order=1)
    large += np.random.Generator(np.random.Philox(seed)).normal(0, NOISE_HU, large.shape).astype(np.float32)
    return np.clip(np.rint(large), -1024, 3071).astype(np.int16)


def write_nifti(array_DHW: np.ndarray, spacing_mm: Sequence[float], path: Path) -> None:
    """Axes as scanners' files have them: LPS on disk, so that a reader has to turn them."""
    import nibabel

    z, y, x = spacing_mm
    affine = np.diag([-x, -y, z, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array_DHW[:, ::-1, ::-1].transpose(2, 1, 0)), affine), path)


def nifti_files(folder: Path, data: Path | None, phantoms: int = 2) -> dict[str, list[Path]]:
    """{"real": the CTs of `data`/misc_ct (none without `data`), "phantom": made once in `folder`}."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for seed in range(phantoms):
        path = folder / f"phantom-{seed}.nii.gz"
        if not path.is_file():
            write_nifti(phantom_volume(seed), PHANTOM_SPACING, folder / f"aside-{seed}.nii.gz")
            os.replace(folder / f"aside-{seed}.nii.gz", path)
        made.append(path)
    real = sorted((data / "misc_ct" / "ct").glob("*.nii.gz")) if data else []
    return {"real": real, "phantom": made}


def shards_of(files: Sequence[Path], out: Path, spacing_mm: Sequence[float] | None = None) -> Any:
    """A shard set of these files, at their own spacing or resampled."""
    from data_shards.resample import resampled
    from data_shards.schema import Study, Texts
    from data_shards.shard_set import ShardSet, ShardWriter
    from data_shards.volume import read_volume

    if not (out / "manifest.json").is_file():
        with ShardWriter(out) as writer:
            for i, file in enumerate(files):
                scan = read_volume(file)
                scan = scan if spacing_mm is None else resampled(scan, spacing_mm)
                texts = Texts(findings="The lungs are clear. No effusion.", impression="No acute finding.")
                writer.write(Study(f"{i:016x}", f"{i:016x}", "train", (scan,), texts))
    return ShardSet.open(out)


def place(shards: Any, row: int) -> tuple[Path, int, int]:
    """Tar, offset and bytes of a sample's first scan."""
    member = shards.index["members"][row][0].as_py()
    return shards.store.folder / shards.index["shard"][row].as_py(), member["offset"], member["bytes"]


def forget(*files: Path) -> None:
    """Drop files from the page cache, so that the next read comes from the disk."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
